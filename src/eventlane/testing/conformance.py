"""The conformance suite: each sentence that a broker must keep is a case, named after it.

A case is a plain async function that takes a `Factory` and raises `AssertionError` where the
sentence is not true; no test framework is needed. For a broker of one's own:

    for case in CASES:
        asyncio.run(case(Storage(url_of_an_empty_storage())))

Each case needs an empty storage. That the suite can fail is shown with `broken.py`.
"""

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction

from eventlane.testing import (
    crash_cases,
    group_cases,
    handler_cases,
    history_cases,
    inspection_cases,
    lane_cases,
    letter_cases,
    lifecycle_cases,
    log_cases,
    message_cases,
    operator_cases,
    outage_cases,
    parking_cases,
    rate_cases,
    replay_cases,
    sharing_cases,
)
from eventlane.testing.stage import Factory, Storage

__all__ = ["CASES", "KILLING", "MODULES", "REOPENING", "Case", "Factory", "Storage"]

Case = Callable[[Factory], Awaitable[None]]

MODULES = (
    log_cases,
    group_cases,
    operator_cases,
    lifecycle_cases,
    inspection_cases,
    lane_cases,
    parking_cases,
    outage_cases,
    rate_cases,
    letter_cases,
    replay_cases,
    handler_cases,
    message_cases,
    history_cases,
    sharing_cases,
    crash_cases,
)
"""From the log up to whole groups; a case is a public coroutine function of such a module."""

CASES: tuple[Case, ...] = tuple(
    found
    for module in MODULES
    for name, found in vars(module).items()
    if iscoroutinefunction(found)
    and found.__module__ == module.__name__
    and not name.startswith("_")
)

KILLING: frozenset[Case] = frozenset(
    (
        *(case for case in CASES if case.__module__ == crash_cases.__name__),
        group_cases.what_was_in_flight_at_an_unclean_end_is_suspected,
    )
)
"""Cases that end what they have opened as kill -9 would: see `Storage`."""

REOPENING: frozenset[Case] = frozenset(
    (
        *KILLING,
        *(case for case in CASES if case.__module__ == sharing_cases.__name__),
        handler_cases.an_event_for_a_topic_that_cannot_be_had_fails_its_own_publisher_only,
        log_cases.an_acknowledged_event_is_there_after_reopening,
        log_cases.a_key_always_lands_in_the_same_partition,
        log_cases.publishing_is_seen_by_who_waits_for_it,
        group_cases.where_a_group_starts_is_decided_once,
        group_cases.a_settlement_survives_reopening,
        group_cases.partitions_go_to_the_next_member_with_a_greater_epoch,
        group_cases.a_pause_is_durable_and_told_to_members,
        lifecycle_cases.a_reset_takes_the_partition_from_its_owner,
        lifecycle_cases.a_group_that_is_handled_is_neither_renamed_nor_removed,
        lifecycle_cases.a_group_with_the_former_name_of_another_has_letters_of_its_own,
        lifecycle_cases.a_letter_of_a_renamed_handler_is_replayed_by_its_successor,
        lifecycle_cases.a_letter_of_a_renamed_group_is_replayed_under_its_new_name,
        inspection_cases.a_held_key_says_when_its_next_attempt_is_due,
        inspection_cases.a_stopped_partition_is_named_in_the_status,
        inspection_cases.a_trace_says_what_became_of_an_event_in_each_group,
        operator_cases.of_two_operators_one_wins,
        operator_cases.a_command_waits_for_an_owner_and_is_carried_out_once,
        lane_cases.a_retry_is_not_early_after_a_restart_either,
        lane_cases.attempts_never_go_down_over_restarts,
        lane_cases.a_partition_ordered_group_is_one_lane_and_stops_at_a_dead_letter,
        history_cases.another_process_goes_on_where_the_first_one_left,
        history_cases.a_random_history_keeps_order_loses_nothing_and_balances,
        parking_cases.a_dead_letter_is_an_event_on_the_topic_of_its_group,
        parking_cases.a_parked_retry_is_not_early_and_nothing_passes_it,
        parking_cases.attempts_of_a_parked_event_never_go_down_over_restarts,
        parking_cases.gaps_name_what_a_lane_passed_over_until_it_is_resolved,
        parking_cases.more_parked_lanes_than_memory_holds_keep_their_order,
        parking_cases.what_a_dead_letter_publishes_of_itself_has_no_payload_unless_asked,
        outage_cases.time_in_an_outage_does_not_count_towards_elapsed_s_max,
        rate_cases.permits_of_all_processes_are_spaced_by_the_rate,
        rate_cases.who_dies_loses_no_more_than_the_permits_that_it_had,
        rate_cases.a_clock_that_is_set_back_holds_up_no_rate,
        letter_cases.a_letter_that_stops_halts_its_partition_and_no_other,
        letter_cases.a_replayed_letter_waits_for_its_retries_before_its_followers,
        letter_cases.parked_events_survive_a_restart_in_order,
        letter_cases.order_holds_through_dead_letter_restart_and_replay,
        replay_cases.a_query_replays_what_meets_its_conditions_and_nothing_else,
        replay_cases.a_replay_goes_on_where_it_was_after_a_restart,
        replay_cases.a_letter_is_replayed_so_often_and_no_more,
        replay_cases.an_edited_event_that_is_none_is_refused_by_its_field,
        replay_cases.a_dead_letter_is_published_again_for_all_only_where_that_is_permitted,
        message_cases.bytes_that_are_no_event_are_dead_at_once_and_kept,
        message_cases.an_undecodable_letter_is_decoded_again_after_a_schema_fix,
        message_cases.headers_that_are_no_headers_are_dead_and_kept,
        message_cases.a_message_that_does_not_say_its_type_is_the_only_one_of_its_topic,
        message_cases.a_message_that_does_not_say_its_type_is_dead_where_there_are_several,
        message_cases.a_tombstone_reaches_only_handlers_that_take_none,
        message_cases.an_event_without_a_key_is_a_lane_of_its_own,
    )
)
"""Cases that open their storage more than once: to start again, or as a second process."""
