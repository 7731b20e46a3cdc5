/*
 * The mailbox protocol for one run. Each script is one atomic block, named like its file in factorial/mailbox/.
 *
 * Around it, all faults at the same time: two workers that die at any point between two scripts and come back as new
 * processes, a worker that is declared dead and continues (a zombie), lost replies, after which the request is sent
 * again, old requests that arrive late, two senders of one result, a client that steers, a client that cancels.
 *
 * The life of the run: a turn with an ordinary tool and a deferred one (park, resume), the second half of that turn
 * (continue), and turns that end the run (complete), one more for each steer that comes too late for the last.
 *
 * check.py compiles and runs this with the bounds and the faults that it lists. Time is not modelled: whatever may
 * happen at some time may happen now.
 */

#ifndef CRASHES
#define CRASHES 2              /* deaths of processes */
#endif
#ifndef ZOMBIES
#define ZOMBIES 1              /* leases that expire although their process lives */
#endif
#ifndef LOST
#define LOST 1                 /* replies that are lost */
#endif
#ifndef LATE
#define LATE 0                 /* requests that are sent again, and whose first copy arrives later */
#endif
#ifndef STEERS
#define STEERS 1
#endif
#ifndef CANCELS
#define CANCELS 1
#endif
#ifndef TROUBLES
#define TROUBLES 1             /* turns that fail, or are released because their process drains */
#endif
#ifndef SENDERS
#define SENDERS 2
#endif
#ifndef LIMIT
#define LIMIT 3                /* max_recoveries */
#endif

#define PROCESSES (2 + CRASHES)
#define NOBODY 255

#define A_CLAIM 1
#define A_COMMIT 2

/* -- statuses, actions, answers */

#define QUEUED 0
#define PROCESSING 1
#define BACKOFF 2
#define PARKED 3
#define COMPLETED 4
#define FAILED 5
#define CANCELLED 6
#define is_final(s) ((s) >= COMPLETED)

#define CONTINUE 1
#define COMPLETE 2
#define PARK 3
#define RESUME 4
#define TRY_LATER 5            /* `backoff` */
#define RELEASE 6
#define FAIL 7
#define CANCEL 8

#define OK 0
#define SUPERSEDED 1
#define NOLEASE 2
#define NOTHING 3

/* -- the server: what the keys of the run and of the processes hold */

byte status = QUEUED;          /* run:<id> */
byte epoch, nonce, seq;
byte holder = NOBODY;
bool cancel_flag;
byte recoveries;
byte last_epoch, last_nonce, last_seq = NOBODY, last_action, last_mail;
byte turn;                     /* fields:<id>: which turn is next; 0 is the one with the tools */
byte applied;                  /* conversation:<id>: the steers in it */
bool j_completion, j_tool;     /* journal:<id> */
byte j_saw;                    /*   how many steers the recorded completion has seen */
bool j_expected;
byte j_delivered;                  /*   a result that arrived before the park */
byte awaits;                  /* awaits:<id>: nothing, open, or OPEN + the result */
#define OPEN 10
byte mail;                     /* mail:<id> */
byte seen;                     /* seen:<id>, a bit for each message */
byte published;                /* published:<message id>, a bit for each sender */
byte ready = 1;                /* ready:<agent>: entries, all of this run */
bool wake;                     /* wake:<agent>: the first worker has just taken it */
bool lease[PROCESSES];         /* lease:<process> */
bool held[PROCESSES];          /* held:<process> */
byte claims[PROCESSES];        /* claims:<process>: the nonce of its latest claim; nonces of a process grow */

/* -- what only the model knows */

byte answer, carried_out, came;        /* the reply of the latest script, until it is read */
bool dead[PROCESSES];
bool executing[PROCESSES];
bool in_hand[PROCESSES];               /* a wake token that a process took, and has not used for a claim yet */
byte newcomer = 2;                     /* the name of the next process */
byte taken_up, taken_by = NOBODY;      /* how often the run was claimed, and which of these claims holds it */
byte crashes, zombies, lost, late, troubles;
byte effects;                          /* how often the tool has been executed */
bool begun;                            /* the deferred call is known outside */
byte accepted, used;                   /* the accepted result, and the one that the run went on with */
byte steered;                           /* accepted steers, each counted once */
bool cancel_accepted;
bool ended;
byte late_kind, late_process, late_epoch, late_nonce, late_seq, late_wish, late_who;  /* a request that has not arrived yet */

#if CRASHES == 0
#define token_in_hand (in_hand[0] || in_hand[1])
#elif CRASHES == 1
#define token_in_hand (in_hand[0] || in_hand[1] || in_hand[2])
#else
#define token_in_hand (in_hand[0] || in_hand[1] || in_hand[2] || in_hand[3])
#endif

/* Invariants 1, 4 and 5 of the protocol, after every script. */
inline check() {
  assert(status != QUEUED || ready == 1);
  assert(ready <= 1);
  assert((status == PROCESSING) == (holder != NOBODY));
  assert(status != PROCESSING || held[holder]);
  assert(status != PARKED || awaits == OPEN);
  assert(status != QUEUED || wake || token_in_hand)
}
/* -- lib/places.lua, lib/run.lua, lib/ending.lua */

inline make_ready() {
  ready++;
#ifndef NO_WAKE
  wake = true
#endif
}

inline wake_if_ready() {
  if :: ready > 0 -> wake = true :: else fi
}

inline read_mail() {
  assert(awaits == 0);        /* no message comes between a tool call and its result */
  came = mail;
  applied = applied + mail;
  mail = 0
}

inline clear_journal() {
  j_completion = false; j_tool = false; j_saw = 0; j_expected = false; j_delivered = 0
}

inline finish(how) {
  assert(!cancel_accepted || how == CANCELLED);
  assert(how != COMPLETED || (mail == 0 && applied == steered));   /* an accepted steer is applied */
  assert(how != COMPLETED || (accepted != 0 && used == accepted)); /* the run went on with the accepted result */
  status = how; holder = NOBODY;
  mail = 0; seen = 0; clear_journal(); awaits = 0;                /* refuse_mail answers unread mail */
  ended = true
}

#ifdef NO_TOKEN_CHECK
#define is_held_by(e, n) (status == PROCESSING)
#elif defined(NO_EPOCH_CHECK)
#define is_held_by(e, n) (status == PROCESSING && nonce == n)
#elif defined(NO_NONCE_CHECK)
#define is_held_by(e, n) (status == PROCESSING && epoch == e)
#else
#define is_held_by(e, n) (status == PROCESSING && epoch == e && nonce == n)
#endif

#ifdef CLAIM_READS_MAIL_ALWAYS
#define turn_is_open (awaits != 0)
#else
#define turn_is_open (j_completion || j_tool || j_expected || awaits != 0)
#endif

/* -- claim.lua */
inline claim(process, n) {
  answer = NOTHING;
  if
  :: !lease[process] -> answer = NOLEASE
  :: else ->
    if
#ifndef CLAIM_FORGETS_NONCE
    :: claims[process] == n ->                        /* the same request again */
      if
      :: held[process] && status == PROCESSING && nonce == n -> answer = OK
      :: else
      fi
#endif
#ifndef LATE_CLAIM_TAKES
    :: claims[process] > n                            /* an older one, delayed on a connection that was given up */
#endif
    :: else ->
      claims[process] = n;
      if
      :: ready > 0 && status == QUEUED ->
        ready--;
        status = PROCESSING; holder = process; epoch++; nonce = n; held[process] = true;
        taken_up++; taken_by = taken_up;
        if :: !turn_is_open -> read_mail() :: else fi;
        answer = OK
      :: else -> ready = 0                            /* an entry of a cancelled run */
      fi
    fi;
    wake_if_ready();
    in_hand[process] = false
  fi;
  came = 0;
  check()
}

/* -- record.lua: `saw` is what the completion has seen; entries are written once (HSETNX) */
inline record(e, n, s, completion, saw, tool, expected) {
  if
  :: !is_held_by(e, n) || s > seq -> answer = SUPERSEDED
  :: else ->
    answer = OK;
    if
    :: s == seq ->
      if :: completion && !j_completion -> j_completion = true; j_saw = saw; recoveries = 0 :: else fi;
      if :: tool && !j_tool -> j_tool = true; recoveries = 0 :: else fi;
      if :: expected && !j_expected -> j_expected = true; recoveries = 0 :: else fi
    :: else
    fi;
    if :: cancel_flag -> carried_out = CANCEL :: else fi
  fi;
  check()
}

/* -- commit.lua: `who` is the claim of the run that this comes from; `saw`, what its last completion has seen */
inline commit(process, e, n, s, wish, who, saw, results) {
  came = 0;
  if
#ifndef NO_DEDUP
  :: last_epoch == e && last_nonce == n && last_seq == s ->  /* the same commit again */
    if
    :: (last_action == CONTINUE || last_action == RESUME) && !is_held_by(e, n) -> answer = SUPERSEDED
    :: else -> answer = OK; carried_out = last_action; came = last_mail
    fi
#endif
  :: else ->
    if
#ifdef NO_SEQ_CHECK
    :: !is_held_by(e, n) -> answer = SUPERSEDED
#else
    :: !is_held_by(e, n) || seq != s -> answer = SUPERSEDED
#endif
    :: else ->
      assert(who == taken_by);                         /* only by the holder */
      assert(seq == s);                                /* one accepted commit per number */
      answer = OK; carried_out = wish;
      if
#ifndef COMMIT_IGNORES_CANCEL
      :: cancel_flag -> carried_out = CANCEL
#endif
#ifndef COMPLETE_IGNORES_MAIL
      :: !cancel_flag && wish == COMPLETE && mail > 0 -> carried_out = CONTINUE
#endif
      :: else
      fi;
      if
      :: carried_out == PARK ->                        /* read_awaits */
        awaits = OPEN;
#ifndef PARK_FORGETS_EARLY_RESULT
        if :: j_delivered != 0 -> awaits = OPEN + j_delivered; carried_out = RESUME :: else fi
#endif
      :: else
      fi;
      if
      :: wish == CONTINUE || wish == COMPLETE || wish == PARK ->   /* the turn is done */
        if :: wish == CONTINUE && carried_out == CONTINUE -> used = results - OPEN :: else fi;
        clear_journal(); turn = 1; recoveries = 0;
        if :: wish != PARK || carried_out == CANCEL -> awaits = 0 :: else fi
      :: else
      fi;
      if :: carried_out == CONTINUE -> read_mail() :: else fi;
      seq++;
      last_epoch = e; last_nonce = n; last_seq = s; last_action = carried_out; last_mail = came;
      if
      :: carried_out == CONTINUE || carried_out == RESUME
      :: else ->
        held[process] = false;
        taken_by = NOBODY;
        if
        :: carried_out == COMPLETE -> assert(saw == applied); finish(COMPLETED)
        :: carried_out == FAIL -> finish(FAILED)
        :: carried_out == CANCEL -> finish(CANCELLED)
        :: carried_out == TRY_LATER -> status = BACKOFF; holder = NOBODY
        :: carried_out == PARK -> status = PARKED; holder = NOBODY
        :: carried_out == RELEASE -> status = QUEUED; holder = NOBODY; make_ready()
        fi
      fi
    fi
  fi;
  check()
}

/* -- lib/reclaim.lua: reclaim */
inline reclaim_run(process, blamed) {
  held[process] = false;
  taken_by = NOBODY;
  epoch++;
  holder = NOBODY;
  if :: blamed -> recoveries++ :: else fi;
  if
  :: cancel_flag -> finish(CANCELLED)
  :: !cancel_flag && recoveries >= LIMIT -> finish(FAILED)
  :: !cancel_flag && recoveries < LIMIT && recoveries > 1 && blamed -> status = BACKOFF
  :: else -> status = QUEUED; make_ready()
  fi
}

/* -- reclaim.lua */
inline reclaim_process(process) {
  lease[process] = false;
  if
  :: held[process] && status == PROCESSING && holder == process -> reclaim_run(process, true)
  :: else
  fi;
  held[process] = false;
  claims[process] = 0;
  in_hand[process] = false;
#ifndef RECLAIM_KEEPS_TOKEN
  wake_if_ready();
#endif
  check()
}

/* -- register.lua */
inline register(process) { lease[process] = true }

/* -- deliver.lua: g is 1 or 2, a sender and its result; `was_accepted` is 1 if it was accepted */
inline deliver(g, was_accepted) {
  was_accepted = 0;
  if
#ifndef DELIVER_FORGETS_MESSAGE
  :: published & (1 << g) -> was_accepted = 1                  /* the same request again */
#endif
  :: else ->
    if
    :: is_final(status)
    :: !is_final(status) && awaits == OPEN ->         /* deliver_to_parked */
      awaits = OPEN + g; was_accepted = 1;
      if :: status == PARKED -> status = QUEUED; make_ready() :: else fi
    :: !is_final(status) && awaits > OPEN
    :: else ->
      if
#ifdef SECOND_RESULT_ACCEPTED
      :: j_expected -> j_delivered = g; was_accepted = 1
#else
      :: j_expected && j_delivered == 0 -> j_delivered = g; was_accepted = 1
#endif
      :: else -> assert(accepted != 0)                 /* UNKNOWN: never to the first sender, if it is in time */
      fi
    fi;
    if
    :: was_accepted -> assert(accepted == 0); accepted = g; published = published | (1 << g)
    :: else
    fi
  fi;
  check()
}

/* -- steer.lua */
inline steer(k) {
  if
  :: is_final(status)
#ifndef STEER_FORGETS_MESSAGE
  :: !is_final(status) && (seen & (1 << k))
#endif
  :: else ->
    if :: seen & (1 << k) :: else -> steered++ fi;
    seen = seen | (1 << k); mail++
  fi;
  check()
}

/* -- cancel.lua */
inline cancel() {
  if
  :: is_final(status)
  :: status == PROCESSING -> cancel_flag = true; cancel_accepted = true
  :: else ->
    cancel_accepted = true;
    epoch++;
#ifdef CANCEL_LOST_UNLESS_HELD
    skip
#else
    finish(CANCELLED)
#endif
  fi;
  check()
}

/* -- promote.lua: the run is due */
inline promote() {
  if :: status == BACKOFF -> status = QUEUED; make_ready() :: else fi;
  wake_if_ready();
  check()
}

/* -- a worker: actors/worker.py, actors/durable_host.py, actors/outbox.py */

/* A process dies before it sends a request. */
#define MAY_DIE if :: crashes < CRASHES && !ended -> crashes++; goto died :: true fi

/* The reply is lost: the connection sends the same request again. */
#define AGAIN(label) if :: lost < LOST -> lost++; forget_answer(); goto label :: true fi

/* What the reply to `record` says: superseded, or to be cancelled. */
#define HEAR \
  if :: answer == SUPERSEDED -> goto left :: else fi; \
  if :: carried_out == CANCEL -> forget_answer(); wish = CANCEL; goto settle :: else fi

/* The turn fails, or its process drains. */
#define MAY_FAIL \
  if \
  :: troubles < TROUBLES -> troubles++; if :: wish = TRY_LATER :: wish = RELEASE :: wish = FAIL fi; goto settle \
  :: true \
  fi

#define BEGIN_TURN \
  MAY_FAIL; \
  if \
  :: waits != 0 -> wish = CONTINUE; goto settle        /* the second half of a turn that was parked */ \
  :: waits == 0 && !first && knows_completion -> wish = COMPLETE; goto settle \
  :: waits == 0 && !first && !knows_completion -> said = saw; wish = COMPLETE; goto settle \
  :: waits == 0 && !first && !knows_completion -> said = saw; goto waited  /* an event carries the completion */ \
  :: waits == 0 && first && !knows_completion -> goto asked \
  :: waits == 0 && first && knows_completion && !knows_tool -> goto tool \
  :: waits == 0 && first && knows_completion && knows_tool -> goto expecting \
  fi

inline forget_answer() { answer = 0; carried_out = 0; came = 0 }

inline forget_run() {
  executing[me] = false;
  my_epoch = 0; my_seq = 0; who = 0; saw = 0; said = 0; waits = 0; wish = 0;
  knows_completion = false; knows_tool = false; first = false
}

proctype Worker(byte me) {
  byte claims_made, my_claim, my_epoch, my_seq, who, saw, said, waits, wish;
  bool knows_completion, knows_tool, first;

  if :: me == 0 -> goto look :: else fi;               /* both are alike: this one is the first */

end_idle:                                              /* actors/control.py: waits for a wake token */
  atomic { wake -> wake = false; in_hand[me] = true };

look:
  atomic {
    MAY_DIE;
    my_claim = 1 + 32 * me + claims_made;              /* a nonce that no other claim has */
    claim(me, my_claim);
    if :: answer == NOLEASE -> register(me); forget_answer(); goto look :: else fi;
    if :: late < LATE -> late++; late_kind = A_CLAIM; late_process = me; late_nonce = my_claim; forget_answer(); goto look
       :: true
    fi;
    AGAIN(look);
    claims_made++;
    if :: answer == NOTHING -> forget_answer(); my_claim = 0; goto end_idle :: else fi;
    forget_answer();
    executing[me] = true;
    my_epoch = epoch; my_seq = seq; who = taken_by; saw = applied; waits = awaits; first = (turn == 0);
#ifndef JOURNAL_IS_NOT_RECALLED
    knows_completion = j_completion; knows_tool = j_tool; said = j_saw;
#endif
    if :: cancel_flag -> wish = CANCEL; goto settle :: else fi;
    BEGIN_TURN
  };

asked:                                                 /* the model has answered: that is recorded before its tools begin */
  atomic {
    MAY_DIE;
    record(my_epoch, my_claim, my_seq, true, saw, false, false);
    AGAIN(asked);
    HEAR;
    knows_completion = true;
    if :: knows_tool -> goto expecting :: else fi
  };

tool:
  atomic { MAY_DIE; effects++; assert(effects <= 1 + crashes + zombies + late) };

kept:
  atomic {
    MAY_DIE;
    record(my_epoch, my_claim, my_seq, false, 0, true, false);
    AGAIN(kept);
    HEAR;
    MAY_FAIL
  };

expecting:                                             /* the deferred tool begins */
  atomic {
    MAY_DIE;
#ifndef NO_EXPECT
    record(my_epoch, my_claim, my_seq, false, 0, false, true);
    AGAIN(expecting);
    HEAR;
#endif
    begun = true; wish = PARK; goto settle
  };

waited:
  atomic {
    MAY_DIE;
    record(my_epoch, my_claim, my_seq, true, said, false, false);
    AGAIN(waited);
    HEAR;
    wish = COMPLETE
  };

settle:
  atomic {
    MAY_DIE;
    commit(me, my_epoch, my_claim, my_seq, wish, who, said, waits);
    if
    :: late < LATE ->
      late++; late_kind = A_COMMIT; late_process = me; late_nonce = my_claim;
      late_epoch = my_epoch; late_seq = my_seq; late_wish = wish; late_who = who;
      forget_answer(); goto settle
    :: true
    fi;
    AGAIN(settle);
    if
    :: answer == OK && carried_out == CONTINUE -> saw = saw + came; waits = 0
    :: answer == OK && carried_out == RESUME -> waits = awaits
    :: else -> goto left
    fi;
    my_seq++; first = false; knows_completion = false; knows_tool = false; said = 0; wish = 0;
    forget_answer();
    BEGIN_TURN;
left:                                                  /* the slot is free: it claims again */
    forget_answer(); forget_run();
    goto look;
died:                                                  /* the supervisor starts another process */
    dead[me] = true; forget_answer(); forget_run();
    me = newcomer; newcomer++; claims_made = 0; my_claim = 0;
    register(me);
    goto end_idle
  }
}

/* Heartbeats, maintenance, supervisors, the network, and time. */

/* A lease has expired, and maintenance, or the supervisor, reclaims what the process held. If the process lives, it
   continues with its old token. (A lease that is renewed before that has changed nothing.) */
#define RECLAIM_DEAD(p) :: atomic { lease[p] && dead[p] -> reclaim_process(p) }
#define RECLAIM_LIVING(p) :: atomic { zombies < ZOMBIES && lease[p] && !dead[p] && (held[p] || in_hand[p]) -> \
                           zombies++; reclaim_process(p) }
/* A process without a lease may take a wake token and die: only the next round of maintenance restores that token. */
#define ROUND(p) :: atomic { in_hand[p] && dead[p] && !lease[p] -> in_hand[p] = false; promote() }
#define HEARTBEAT(p) :: atomic { p < newcomer && !dead[p] && !lease[p] -> register(p) }
#define RELEASE_STRAY(p) :: atomic { late && held[p] && !dead[p] && lease[p] && !executing[p] -> reclaim_run(p, false); check() }
#if CRASHES == 0
#define FOR_EACH(DO) DO(0) DO(1)
#elif CRASHES == 1
#define FOR_EACH(DO) DO(0) DO(1) DO(2)
#else
#define FOR_EACH(DO) DO(0) DO(1) DO(2) DO(3)
#endif

proctype World() {
end:
  do
  :: atomic { status == BACKOFF -> promote() }
  FOR_EACH(ROUND)
  FOR_EACH(RECLAIM_DEAD)
#if ZOMBIES > 0
  FOR_EACH(RECLAIM_LIVING)
#endif
#if LATE > 0
  :: atomic { late_kind == A_CLAIM -> late_kind = 0; claim(late_process, late_nonce); forget_answer() }
  :: atomic { late_kind == A_COMMIT -> late_kind = 0;
      commit(late_process, late_epoch, late_nonce, late_seq, late_wish, late_who, 0, 0); forget_answer() }
  FOR_EACH(HEARTBEAT)
#ifndef NO_RELEASE
  FOR_EACH(RELEASE_STRAY)
#endif
#endif
  od
}

/* A system outside that knows the deferred call, and sends its result. */
proctype Sender(byte g) {
  bool was_accepted;
again:
  atomic { begun || ended -> deliver(g, was_accepted); AGAIN(again);
    assert(was_accepted || accepted != g); was_accepted = 0 }                    /* an accepted sender gets OK */
}

proctype Steerer(byte k) {
again:
  atomic { steer(k); AGAIN(again) }
}

proctype Canceller() {
#ifdef CANCEL_ONLY_ONCE_HELD
  status == PROCESSING;
#endif
  if :: true :: goto silent fi;
again:
  atomic { cancel(); AGAIN(again) };
silent:
  skip
}

init {
  atomic {
    register(0); register(1); in_hand[0] = true;
    run Worker(0); run Worker(1); run World(); run Sender(1);
#if SENDERS > 1
    run Sender(2);
#endif
#if STEERS > 0
    run Steerer(0);
#endif
#if STEERS > 1
    run Steerer(1);
#endif
#if CANCELS > 0
    run Canceller();
#endif
    skip
  }
}

ltl ends { <> ended }
ltl cancelled { [] (cancel_accepted -> <> (status == CANCELLED)) }
