"""What keeps comparisons honest, sentence by sentence, and the tests that hold it.

Loss that falls and ranks that agree prove little: a wrong method has both. So each of these has a
test that a wrong method fails, and each method has tests of its own algebra.
"""

import ast
from pathlib import Path

import pytest

from tests.plain import METHODS
from tests.small import small

INVARIANTS = {
    "Every result has three accuracies: of the global model on all test samples and on clients'"
    " shards, and of clients' own models": """
        methods::test_every_result_has_three_accuracies
        outcome::test_verdict_on_the_global_model
        outcome::test_personal_models_are_those_that_clients_trained""",
    "Bytes are what MPI was handed, by client, kind and direction, and formulas agree": """
        outcome::test_clients_are_charged_what_mpi_was_handed
        bytes::test_every_method_has_a_formula
        bytes::test_clients_bytes_are_the_formulas
        bytes::test_rounds_bytes_are_the_sums_over_clients
        bytes::test_ranks_bytes_are_their_clients_and_headers""",
    "What is sent once stands apart, in round -1": """
        engine::test_there_is_a_round_before_the_first_exactly_if_a_method_agrees
        ssfl::test_everyone_is_asked_once_and_a_sample_afterwards""",
    "Budgets of bytes match runs, and what a target costs is told": """
        engine::test_a_budget_ends_the_run_for_everyone
        config::test_budgets
        targets::test_what_each_run_took
        targets::test_a_target_is_met_by_what_equals_it""",
    "FLOPs are 2 for each weight that is not zero and place of the output, and three times that in"
    " training": """
        flops::test_flops_of_a_convolution_and_of_linear_layers
        burden::test_training_a_convolutional_network_by_hand
        burden::test_training_a_masked_convolutional_network_by_hand
        burden::test_what_counts_nothing_is_not_trained
        burden::test_samples_are_those_that_steps_saw""",
    "There are two Dirichlet partitions, of unequal shards and of equal ones": """
        partitions::test_the_two_dirichlet_partitions_are_different_ones
        partitions::test_dirichlet_moments
        partitions::test_dirichlet_balanced_is_the_process_sample_by_sample""",
    "A hundred clients run on few ranks, and each is charged its own bytes": """
        ranks::test_a_hundred_clients_share_few_ranks_and_are_charged_one_by_one""",
    "Running statistics are averaged as they are, or never leave their client": """
        statistics::test_every_method_averages_statistics_as_they_are
        statistics::test_averaged_statistics_are_averaged_state_dicts
        statistics::test_local_statistics_stay_with_their_clients
        statistics::test_what_is_local_does_not_travel""",
    "SSFL's mask is the same on all ranks, and keeps floor(density * d) weights": """
        ssfl::test_the_mask_is_the_same_on_all_ranks
        ssfl::test_the_mask_is_the_global_top_of_the_scores
        ssfl::test_the_count_is_the_floor_of_the_exact_product
        ssfl::test_of_equal_scores_as_many_are_kept_as_asked""",
    "Quantization at random is right on average: E Q(g) = g": """
        compressors::test_levels_are_right_on_average
        compressors::test_levels_vary_no_more_and_are_as_few_as_the_paper_proves
        compressors::test_without_feedback_it_is_right_on_average
        sparse::test_stochastic_rounding_is_right_on_average
        fedsl::test_gradients_are_right_on_average""",
    "Dropout at a cut is right on average, and a gradient's support is its activation's": """
        dropping::test_both_ways_are_right_on_average
        dropping::test_a_gradient_comes_back_where_its_activation_went""",
    "FedSL without pruning, rounding and dropout, averaged every round, is SplitFed v1": """
        fedsl::test_with_everything_off_it_is_splitfed_bit_for_bit""",
    "Random-k without feedback is right on average": """
        compressors::test_randomk_over_all_sets_of_positions
        compressors::test_randomk_takes_all_sets_of_positions_alike""",
    "Error feedback conserves: sent + residual = input + old residual": """
        feedback::test_what_is_sent_and_what_waits_is_the_update_and_what_waited
        topk::test_a_run_conserves_every_update
        sgcfl::test_what_a_residual_at_the_cut_leaves_is_sent_later
        stc::test_rounds_against_algorithm_2
        sgcfl::test_what_a_residual_leaves_is_sent_later""",
    "Compressors with feedback contract": """
        feedback::test_compressors_contract_so_that_in_the_end_all_is_sent
        compressors::test_topk_contracts_by_what_it_keeps
        compressors::test_signs_contract_as_the_paper_says
        compressors::test_powersgd_projects_and_so_contracts
        compressors::test_powersgd_of_full_rank_is_fedavg""",
    "STC decodes what it encoded, and both sides hold one model": """
        stc::test_what_is_decoded_is_what_was_encoded
        stc::test_a_client_trains_on_the_very_model_of_the_server""",
    "Golomb's code goes round trip, and is as long as its formula says": """
        codec::test_golombs_code_goes_round_trip
        codec::test_golombs_code_of_any_gaps
        codec::test_golombs_code_is_as_long_as_its_formula_says
        codec::test_no_other_number_of_lower_bits_is_shorter""",
    "SCAFFOLD's c is the mean of all c_k, under full and partial participation": """
        scaffold::test_c_is_the_mean_of_all_c_k_in_the_weights_of_the_objective
        scaffold::test_c_k_is_the_mean_raw_gradient_under_every_optimizer""",
    "FedNova divides updates by how far their steps could go": """
        fednova::test_reach_in_closed_form
        fednova::test_reach_is_how_far_a_constant_gradient_carries""",
    "SPATL's predictor costs no bytes, and indices that nobody chose stay": """
        personal::test_what_is_private_costs_no_bytes_and_never_travels
        spatl::test_what_nobody_sends_stays""",
    "SplitFed with one client is central training, step for step": """
        degenerate::test_splitfed_with_one_client_is_central_training_step_for_step
        splitlearning::test_one_client_is_central_training_over_rounds""",
    "SplitFed v1 is FedAvg, and with one local step FedSGD, with a tail or without": """
        degenerate::test_splitfed_v1_is_fedavg
        splitfed::test_a_tail_changes_nothing_but_what_travels""",
    "Settings of the machine change nothing, nor does the environment": """
        machine::test_waves_and_vectors_in_files_beside_other_settings
        machine::test_folders
        machine::test_hashes_of_texts_locale_and_zone""",
    "Who works while another is served changes nothing, nor do the server's threads": """
        ranks::test_who_works_while_another_is_served_does_not_matter
        hardware::test_the_number_of_threads_does_not_matter""",
    "Lightweight FedSL with everything off is SplitFed": """
        fedsl::test_with_everything_off_it_is_splitfed_bit_for_bit""",
    "Dropout at a cut is right on average, and a gradient's support is the activation's": """
        dropping::test_both_ways_are_right_on_average
        dropping::test_a_gradient_comes_back_where_its_activation_went""",
    "Sparse-gradient collaborative learning with nothing on is SplitFed, and so it is where all"
    " values are kept as they are": """
        sgcfl::test_with_nothing_on_it_is_splitfed
        sgcfl::test_keeping_all_as_it_is_is_splitfed""",
    "SGQ and DQ are exact on what is kept if its values have 32 bits": """
        sgcfl::test_what_arrives_is_dq_of_sgq""",
    "Weights by distance are their formulas, and their sum is 1": """
        distance::test_each_rule_is_its_formula
        sgcfl::test_rounds_equal_plain_training
        sgcfl::test_distances_and_weights_are_in_the_result""",
    "What leaves out and rounds nothing on its way over a cut is SplitFed, and gradients come back"
    " where activations went": """
        links::test_what_leaves_out_nothing_is_splitfed
        links::test_gradients_come_back_where_activations_went""",
    "Compressed models for heterogeneous devices, at a share of 1, are FedSGD and FedAvg": """
        hetiot::test_a_share_of_one_is_fedavg""",
    "HeteroFL where all are as wide as the model is FedAvg": """
        heterofl::test_with_all_rates_one_it_is_fedavg""",
    "The number of ranks changes nothing, and neither do rows, in any method and any choice": """
        ranks::test_every_method_in_waves
        ranks::test_every_method_with_all_that_training_can_do_and_few_clients_a_round
        ranks::test_every_choice
        rows::test_stacked_equals_one_by_one
        rows::test_stacked_equals_one_by_one_in_every_choice""",
}
"""Sentences, and under each its tests: file::function, as one `test_file.py` has it."""

TOGETHER = {
    "compressors": ("randomk", "qsgd", "signsgd", "dgc", "powersgd"),
    "personal": ("local", "fedper", "fedrep", "fedbn", "ditto", "finetune"),
    "staticmask": ("clientmask",),
    "fedrolex": ("federated-dropout",),
    "links": ("splitquant", "randtopk", "splitfc", "fedlite", "splitcom"),
}
"""Methods whose algebra is tested in one file with others."""


def place(file: str) -> Path:
    """Where tests of that name lie, beside those of the oracles."""
    everywhere = Path(__file__).parent.parent.rglob(f"test_{file.replace('-', '_')}.py")
    (found,) = (path for path in everywhere if path.parent.name != "oracles")
    return found


def functions(file: str) -> set[str]:
    """The tests of a file."""
    tree = ast.parse(place(file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("sentence", INVARIANTS)
def test_there_are_these_tests(sentence: str) -> None:
    for word in INVARIANTS[sentence].split():
        file, _, name = word.partition("::")
        assert name in functions(file), word


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_tests_of_its_own(name: str) -> None:
    file = next((file for file, names in TOGETHER.items() if name in names), name)
    text = place(file).read_text()
    is_default = small().method.name == name
    assert f'"{name}"' in text or f"method.name={name}" in text or is_default
