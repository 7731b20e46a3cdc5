"""The faults, as data: a text of the package, its replacement, and the quickest tests that must fail then."""

from dataclasses import dataclass

__all__ = ["FAULTS", "Fault"]

SCRIPTS = "tests/redis/test_mailbox_scripts.py"
EDGES = "tests/redis/test_waiting_edges.py"
RECOVERY = "tests/redis/test_worker_recovery.py"
JOURNAL = "tests/redis/test_worker_journal.py"
CHILDREN = "tests/spec/test_spec_t_children.py"
BATCHES = "tests/spec/test_spec_n_batches.py"
DEFERRED = "tests/spec/test_spec_t_deferred.py"
STEPS = "tests/redis/test_user_steps.py"
GUARDS = "tests/unit/test_guards.py"


@dataclass(frozen=True)
class Fault:
    """`text` occurs exactly once in `factorial/<file>`; `tests` are pytest node ids without parameters."""

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]


FAULTS = [
    # Tokens.
    Fault(
        "a reclaimed process is answered with what arrived after that",
        "mailbox/operations/commit.lua",
        "if (carried_out == 'continue' or carried_out == 'resume') and not is_held_by(run, epoch, nonce) then",
        "if false then",
        (f"{SCRIPTS}::test_a_lost_answer_is_not_repeated_to_a_process_that_was_reclaimed_meanwhile",),
    ),
    Fault(
        "epoch not checked",
        "mailbox/lib/run.lua",
        "run.epoch == epoch and run.nonce == nonce",
        "run.nonce == nonce",
        (f"{SCRIPTS}::test_a_commit_with_an_old_token_changes_nothing",),
    ),
    Fault(
        "nonce not checked",
        "mailbox/lib/run.lua",
        "run.epoch == epoch and run.nonce == nonce",
        "run.epoch == epoch",
        (f"{SCRIPTS}::test_a_record_with_an_old_token_changes_nothing",),
    ),
    Fault(
        "seq of a commit not checked",
        "mailbox/operations/commit.lua",
        "if not is_held_by(run, epoch, nonce) or run.seq ~= seq then",
        "if not is_held_by(run, epoch, nonce) then",
        (f"{SCRIPTS}::test_a_commit_with_an_old_token_changes_nothing",),
    ),
    Fault(
        "seq of a step not checked",
        "mailbox/operations/record.lua",
        "if seq < run.seq then",
        "if false then",
        (f"{SCRIPTS}::test_a_record_of_the_turn_before_changes_nothing",),
    ),
    Fault(
        "children of a process that does not hold the parent any more",
        "mailbox/operations/spawn.lua",
        "if not is_held_by(parent, epoch, nonce) then",
        "if not parent then",
        (f"{SCRIPTS}::test_spawn_with_an_old_token_changes_nothing",),
    ),
    # Requests that are sent again.
    Fault(
        "commit not deduplicated",
        "mailbox/operations/commit.lua",
        "if run and string.sub(run.last_commit, 1, #token + 1) == token .. ':' then",
        "if false then",
        (f"{SCRIPTS}::test_commit_twice_is_once",),
    ),
    Fault(
        "claim not deduplicated",
        "mailbox/operations/claim.lua",
        "if latest == nonce then",
        "if false then",
        (f"{SCRIPTS}::test_claim_again_with_the_same_nonce_gives_the_same_runs",),
    ),
    Fault(
        "a late claim claims runs",
        "mailbox/operations/claim.lua",
        "elseif number_of(nonce) >= number_of(latest) then",
        "else",
        (f"{SCRIPTS}::test_an_old_claim_that_arrives_late_claims_nothing",),
    ),
    Fault(
        "a worker sends a new claim although an answer was lost",
        "actors/worker.py",
        "nonce=self._nonce,",
        "nonce=new_nonce(),",
        (f"{RECOVERY}::test_a_claim_whose_answer_was_lost_is_made_again_and_loses_no_task",),
    ),
    Fault(
        "a journal entry written over",
        "mailbox/operations/record.lua",
        "redis.call('HSETNX', journal_key(id), entries[i], entries[i + 1])",
        "redis.call('HSET', journal_key(id), entries[i], entries[i + 1])",
        (f"{SCRIPTS}::test_record_twice_is_once",),
    ),
    Fault(
        "a task enqueued twice",
        "mailbox/lib/create.lua",
        "if redis.call('EXISTS', run_key(run.id)) == 1 then",
        "if false then",
        (f"{SCRIPTS}::test_enqueue_twice_is_once",),
    ),
    Fault(
        "a child spawned twice counted twice",
        "mailbox/operations/spawn.lua",
        "if create(run, conversation, fields, now, metadata) then",
        "if create(run, conversation, fields, now, metadata) or true then",
        (f"{EDGES}::test_a_repeated_spawn_that_creates_nothing_does_not_restore_an_expired_batch",),
    ),
    Fault(
        "a task of a batch that is enqueued twice is counted twice",
        "mailbox/operations/enqueue_batch.lua",
        "  if event then",
        "  if event or true then",
        (f"{BATCHES}::test_spec_N05_a_call_that_is_repeated_after_a_failure_enqueues_nothing_twice",),
    ),
    Fault(
        "a batch that was cancelled accepts further tasks",
        "mailbox/operations/enqueue_batch.lua",
        "elseif batch.cancel_requested then",
        "elseif false then",
        (f"{BATCHES}::test_spec_N06_a_batch_of_which_a_part_was_enqueued",),
    ),
    Fault(
        "the end of a cancelled batch without an active task is not published",
        "mailbox/operations/cancel_batch.lua",
        "== 1 and batch.active <= 0 then",
        "== 1 and false then",
        (f"{BATCHES}::test_spec_N06_a_batch_of_which_a_part_was_enqueued",),
    ),
    Fault(
        "turns of a batch are counted again with each commit",
        "mailbox/lib/batch.lua",
        "local taken = math.min(turns, batch.max_turns) - counted",
        "local taken = math.min(turns, batch.max_turns)",
        (f"{BATCHES}::test_spec_N07_with_max_turns_progress_counts_turns",),
    ),
    Fault(
        "a task that ends early leaves its turns out of the progress of its batch",
        "mailbox/lib/batch.lua",
        "  take_turns(run, batch, batch.max_turns)",
        "",
        (f"{BATCHES}::test_spec_N07_with_max_turns_progress_counts_turns",),
    ),
    Fault(
        "a steer accepted twice",
        "mailbox/operations/steer.lua",
        "redis.call('SADD', seen_key(id), message_id)",
        "",
        (f"{SCRIPTS}::test_steer_twice_is_once",),
    ),
    Fault(
        "what was not answered is not sent again",
        "mailbox/transport/connection.py",
        "self._expire(MailboxUnavailableError(",
        "self._fail_all(MailboxUnavailableError(",
        ("tests/redis/test_connect_outage.py::test_commands_in_flight_are_sent_again",),
    ),
    # Queues and wake tokens.
    Fault(
        "a claim does not pass the wake token on",
        "mailbox/operations/claim.lua",
        "if somebody_may_claim_more() then",
        "if false then",
        (f"{SCRIPTS}::test_a_claim_passes_the_wake_token_on_while_work_remains",),
    ),
    Fault(
        "the wake token is lost with its process",
        "mailbox/operations/reclaim.lua",
        "wake_if_ready(agent) --",
        "--",
        (f"{SCRIPTS}::test_the_wake_token_of_a_dead_process_is_restored",),
    ),
    Fault(
        "a due run is lost",
        "mailbox/lib/park.lua",
        "add_to_queue(run, false)",
        "",
        (f"{SCRIPTS}::test_a_run_in_backoff_is_claimed_when_it_is_due_and_not_before",),
    ),
    Fault(
        "an owner's runs are not counted down",
        "mailbox/lib/places.lua",
        "add_to_count(running_key(run.agent), run.owner, -1)",
        "add_to_count(running_key(run.agent), run.owner, 0)",
        ("tests/redis/test_owner_limits.py::test_whatever_clears_the_holder_of_a_run_makes_the_next_one_ready",),
    ),
    # Results and children.
    Fault(
        "park ignores an early result",
        "mailbox/operations/commit.lua",
        "result = redis.call('HGET', journal_key(id), 'delivered:' .. key)",
        "result = nil",
        (f"{DEFERRED}::test_spec_T02_a_result_that_comes_before_the_park_is_kept",),
    ),
    Fault(
        "park ignores a child that has ended",
        "mailbox/operations/commit.lua",
        "elseif is_final(status) then",
        "elseif false then",
        (f"{CHILDREN}::test_spec_T03_children_that_end_before_the_park",),
    ),
    Fault(
        "a second result accepted before the park",
        "mailbox/operations/deliver.lua",
        "redis.call('HSETNX', journal_key(id), 'delivered:' .. key, result) == 1",
        "redis.call('HSET', journal_key(id), 'delivered:' .. key, result)",
        (f"{SCRIPTS}::test_a_result_is_accepted_once",),
    ),
    Fault(
        "a second result accepted while parked",
        "mailbox/lib/park.lua",
        "elseif string.sub(known, 1, 1) == '!' then",
        "elseif false then",
        (f"{SCRIPTS}::test_a_result_is_accepted_once",),
    ),
    Fault(
        "a parent is not notified of a failed child",
        "mailbox/lib/ending.lua",
        "if parent and is_parked(parent.status) then",
        "if parent and is_parked(parent.status) and status ~= 'failed' then",
        (f"{CHILDREN}::test_spec_T03_a_parked_parent_learns_at_once_that_its_child_has_failed",),
    ),
    Fault(
        "the end of a batch is not published when its parent is removed",
        "mailbox/lib/batch.lua",
        "  if not batch.owner or not batch.parent_agent then",
        "  if not batch.owner or not batch.parent_agent or batch.parent and not load_run(batch.parent) then",
        (
            "tests/redis/test_waiting_edges.py::test_the_end_of_a_batch_is_published_when_its_parent_has_ended_and_is_removed",
        ),
    ),
    Fault(
        "a child's end counted twice in its batch",
        "mailbox/lib/batch.lua",
        "redis.call('HINCRBY', key, 'ended', 1)",
        "redis.call('HINCRBY', key, 'ended', 2)",
        (f"{CHILDREN}::test_spec_T03_the_progress_of_a_small_batch_is_told_task_by_task",),
    ),
    Fault(
        "a child removed while its parent still awaits it",
        "mailbox/operations/expire.lua",
        "if type(parent_status) == 'string' and not is_final(parent_status) then",
        "if false then",
        (f"{EDGES}::test_a_child_that_has_ended_is_kept_until_its_parent_has_ended",),
    ),
    # Cancelling and steering.
    Fault(
        "commit ignores a cancel",
        "mailbox/operations/commit.lua",
        "if run.cancel_requested == '1' then",
        "if false then",
        (f"{SCRIPTS}::test_cancel_of_a_held_run_twice_signals_its_holder",),
    ),
    Fault(
        "a cancel of a queued run only flagged",
        "mailbox/lib/cancel.lua",
        "if run.status == 'processing' then",
        "if true then",
        (f"{SCRIPTS}::test_cancel_twice_is_once",),
    ),
    Fault(
        "a cancelled run goes on when its holder dies",
        "mailbox/lib/reclaim.lua",
        "if run.cancel_requested == '1' then",
        "if false then",
        (f"{SCRIPTS}::test_a_cancelled_run_whose_holder_dies_ends_as_cancelled",),
    ),
    Fault(
        "the children of a cancelled run go on",
        "mailbox/lib/ending.lua",
        "append_all(doomed_key(), redis.call('SMEMBERS', children_key(run.id)))",
        "",
        (f"{CHILDREN}::test_spec_T03_cancelling_the_parent_cancels_all_below_it",),
    ),
    Fault(
        "complete over unread mail",
        "mailbox/operations/commit.lua",
        "elseif action == 'complete' and redis.call('LLEN', mail_key(id)) > 0 then",
        "elseif false then",
        (f"{SCRIPTS}::test_a_completion_with_unread_mail_becomes_another_turn",),
    ),
    Fault(
        "mail read in the middle of a turn",
        "mailbox/operations/claim.lua",
        "if not turn_has_begun(journal) and #awaits == 0 then",
        "if #awaits == 0 then",
        (f"{SCRIPTS}::test_mail_is_not_read_before_a_turn_that_has_begun_is_finished",),
    ),
    # Dead processes.
    Fault(
        "reclaim does not check who holds the run",
        "mailbox/lib/reclaim.lua",
        "if run and run.status == 'processing' and run.holder == process then",
        "if run and run.status == 'processing' then",
        (f"{SCRIPTS}::test_a_run_in_the_set_of_a_dead_process_is_reclaimed_only_from_its_holder",),
    ),
    Fault(
        "reclaim does not count",
        "mailbox/lib/reclaim.lua",
        "run.recoveries = run.recoveries + 1",
        "",
        (f"{SCRIPTS}::test_a_run_whose_holders_die_again_and_again_fails",),
    ),
    Fault(
        "no pause after repeated deaths",
        "mailbox/lib/reclaim.lua",
        "if cause == 'left' or run.recoveries <= most_at_once(cause) then",
        "if true then",
        (f"{SCRIPTS}::test_a_run_whose_holders_die_again_and_again_fails",),
    ),
    Fault(
        "a missing lease is believed at once",
        "mailbox/operations/reclaim.lua",
        "redis.call('ZADD', processes_key(), now, process)",
        "reclaim_process(process)",
        (f"{SCRIPTS}::test_a_missing_lease_is_noted_first_and_reclaimed_after_the_patience",),
    ),
    Fault(
        "a release counts as a retry",
        "mailbox/operations/commit.lua",
        "write_run(id, 'status', 'queued', 'holder', '')",
        "write_run(id, 'status', 'queued', 'holder', '', 'retries', run.retries + 1)",
        (f"{SCRIPTS}::test_a_released_run_is_first_in_the_queue",),
    ),
    Fault(
        "the heartbeat does not register again",
        "actors/heartbeat.py",
        "            await self.register()",
        "            pass",
        (f"{RECOVERY}::test_a_lost_lease_is_taken_anew_and_the_held_tasks_are_kept",),
    ),
    Fault(
        "a superseded activation goes on",
        "actors/durable_host.py",
        "            case Superseded():\n                self.abandon()",
        "            case Superseded():\n                pass",
        (f"{RECOVERY}::test_a_superseded_execution_calls_no_tool",),
    ),
    Fault(
        "what is not executed is not released",
        "actors/inventory.py",
        "if strays := again & held:",
        "if strays := again & held and set():",
        ("tests/redis/test_server_rollback.py::test_a_run_that_a_process_holds_again_after_its_end_goes_on",),
    ),
    # Journal, outbox, events.
    Fault(
        "the journal is not recalled",
        "actors/journal.py",
        "result = self._entries.get(key)",
        "result = None",
        (f"{JOURNAL}::test_a_turn_that_fails_after_one_of_two_tools_repeats_neither_model_call_nor_tool",),
    ),
    Fault(
        "tools begin before the model's answer is recorded",
        "actors/durable_host.py",
        "        if urgent:\n",
        "        if False:\n",
        (f"{RECOVERY}::test_a_superseded_execution_calls_no_tool",),
    ),
    Fault(
        "events published again with a record that is sent again",
        "mailbox/operations/record.lua",
        "if message_number > run.message_number then",
        "if true then",
        (f"{SCRIPTS}::test_record_twice_is_once",),
    ),
    Fault(
        "events of a record published again with the commit",
        "mailbox/operations/commit.lua",
        "local published = unanswered > 0 and run.message_number >= unanswered and unanswered_events or 0",
        "local published = 0",
        (f"{SCRIPTS}::test_events_of_an_unanswered_record_are_published_once_with_the_commit",),
    ),
    Fault(
        "a subscription does not read what it missed",
        "mailbox/views/subscription.py",
        "    def miss(self) -> None:\n        self.missed = True\n",
        "    def miss(self) -> None:\n",
        ("tests/redis/test_orchestrator_subscribe.py::test_a_slow_reader_misses_nothing_and_holds_nobody_up",),
    ),
    # Steps and guards.
    Fault(
        "a recalled step brings what came after it",
        "agent/lifecycle/steps.py",
        "with_siblings=step.kind is StepKind.TOOL_ACTION",
        "with_siblings=True",
        (f"{STEPS}::test_what_run_turn_changes_between_its_steps_is_not_changed_twice",),
    ),
    Fault(
        "a thread that outlives its turn records its step",
        "agent/lifecycle/steps.py",
        "        if self._is_closed:\n",
        "        if False:\n",
        (f"{STEPS}::test_a_thread_that_outlives_its_turn_records_nothing_any_more",),
    ),
    Fault(
        "a task that the deployed code cannot read fails at once",
        "agent/lifecycle/failure.py",
        "    if deferred_for is None or deferred_for >= patience_with(error, policy):\n",
        "    if True:\n",
        ("tests/redis/test_deferral.py::test_a_release_that_cannot_read_a_context_does_not_end_the_task",),
    ),
    Fault(
        "what an agent's own run_turn awaits is forgotten",
        "agent/lifecycle/decide.py",
        "    return park(results, own_calls, own_children)\n",
        "    return park(results, [], [])\n",
        ("tests/spec/test_spec_n_parking.py::test_spec_N09_a_turn_waits_for_its_children_without_a_model",),
    ),
    Fault(
        "a failed step that is tried again at once is another step",
        "agent/lifecycle/steps.py",
        "            heappush(self._returned.setdefault(within + name, []), number)\n",
        "",
        (f"{STEPS}::test_a_failed_step_that_is_tried_again_at_once_is_the_same_step",),
    ),
    Fault(
        "the key of a step does not name the step that contains it",
        "agent/lifecycle/steps.py",
        'within = f"{frame.key}/" if frame is not None and frame.key else self.place',
        'within = ""',
        (f"{STEPS}::test_the_same_name_again_is_another_step_and_tools_side_by_side_have_their_own",),
    ),
    Fault(
        "a callback's step makes the turn one that has begun",
        "mailbox/operations/claim.lua",
        "if step == 'completion' or string.find(step, '^tool:') or string.find(step, '^expected:') then",
        "if step ~= '' then",
        (f"{STEPS}::test_a_steer_is_read_although_a_callback_has_recorded_a_step",),
    ),
    Fault(
        "a guard cannot refuse a step",
        "agent/lifecycle/steps.py",
        "                await guard.before(call)\n",
        "",
        (f"{GUARDS}::test_a_budget_is_a_guard_of_a_few_lines",),
    ),
    Fault(
        "a step that a guard has replaced is called all the same",
        "agent/lifecycle/steps.py",
        "                if call.has_result:\n                    self._check_type(step, call.result)",
        "                if False:\n                    self._check_type(step, call.result)",
        (f"{GUARDS}::test_a_guard_may_replace_a_step_and_the_call_is_not_made",),
    ),
    Fault(
        "a run that has ended is cancelled",
        "actors/interruption.py",
        "return not self.has_ended and self._want(Cancel())",
        "return self._want(Cancel())",
        ("tests/unit/test_interruption.py::test_whatever_is_asked_for_at_whatever_moment",),
    ),
]
