/* The slot protocol on PostgreSQL (READ COMMITTED), statement by statement: core/docs/protocol.md ties each step to its
   function. A statement is a snapshot, the locks that it takes with a second look at the newest row, and a commit, each
   one step; between two steps of one actor any other may act, die or stand still. Every WITHOUT_... or ..._INSTEAD
   takes a guard out: the checker must then find fault.

   Limit 0 has the slot 0, limit 1 the slots 1 and 2. One claim for each client, CLIENTS of them. */
#ifndef CLIENTS
#define CLIENTS 3
#endif
#ifndef DEMANDS
#define DEMANDS 0
#endif
#if DEMANDS == 0 /* narrow, both limits, wide */
#define NEED(c, l) (((c) == 0) * ((l) == 0) + ((c) == 1) + ((c) == 2) * 2 * (l))
#elif DEMANDS == 1 /* everybody the one slot of limit 0 */
#define NEED(c, l) ((l) == 0)
#elif DEMANDS == 2 /* everybody one of the two slots of limit 1 */
#define NEED(c, l) ((l) == 1)
#elif DEMANDS == 3 /* one of limit 1, both limits, one of limit 1 */
#define NEED(c, l) ((l) == 1 || (c) == 1)
#elif DEMANDS == 4 /* both limits twice, one of limit 1 */
#define NEED(c, l) ((l) == 1 || (c) < 2)
#elif DEMANDS == 5 /* one of limit 1 twice, both slots of it */
#define NEED(c, l) ((l) * (1 + ((c) == 2)))
#endif
#ifndef ROUNDS
#define ROUNDS 1 /* claims that each client makes one after the other; 0: for ever */
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef STALLS
#define STALLS 0 /* how often a session expires while its process lives */
#endif
#ifndef THROWN
#define THROWN 0 /* how often a transaction of several statements stands still, and the server ends it */
#endif
#ifndef SILENT
#define SILENT 0 /* how many waiters stop listening though their process beats */
#endif
#ifndef LATE
#define LATE 0 /* how many acknowledgements come too late */
#endif
#ifndef CHANGES
#define CHANGES 0 /* 1: limit 1 shrinks from 2 to 1; 2: and grows again */
#endif
#ifndef WITHDRAWALS
#define WITHDRAWALS 0
#endif
#ifndef REPEATS
#define REPEATS 0 /* releases that are sent twice, since the answer was lost */
#endif

#define SLOTS 3
#define LIMIT(s) ((s) > 0)
#define SWEEPER 3
#define ADMIN 4

#define NONE 0
#define WAITING 1
#define GRANTED 2
#define HELD 3
#define PARKED 4
#define ENDED 5

#define FRESH 0
#define EXPIRED 1 /* TTL and grace are over: whoever sweeps next may delete the row */
#define GONE 2

/* -- the database: rows, and who has locked them (actor + 1) -- */
byte holder[SLOTS];          /* claim + 1, or 0: free */
bit shut[SLOTS];             /* not usable; a row that is free and shut is not there */
byte slot_lock[SLOTS];
byte state[CLIENTS];         /* of the claim */
byte claim_lock[CLIENTS];
byte place[CLIENTS];         /* rank, 1 first; a waiter row stands for each limit that it needs while it is WAITING */
bit overdue[CLIENTS];        /* granted too long ago */
byte session[CLIENTS];
bit session_locked[CLIENTS]; /* the sweep has deleted it, and not committed yet */
byte capacity = 2;           /* of limit 1 */
bit draining;
byte grant_lock;
#ifdef EPOCHS
byte sequence;               /* of the history: the id of a grant's row is the epoch of its slots */
byte epoch[SLOTS];
#define NEXT_EPOCH(variable) sequence++; variable = sequence
#else
#define NEXT_EPOCH(variable) skip
#endif

/* -- the processes -- */
bit dead[CLIENTS];
bit inside[CLIENTS];         /* it believes that it holds its slots, and works under them */
bit silent[CLIENTS];
bit done[CLIENTS];
byte crashes = CRASHES, stalls = STALLS, thrown = THROWN, silences = SILENT, lates = LATE, withdrawals = WITHDRAWALS, repeats = REPEATS;
byte changes = CHANGES;

/* -- what the pass under way has read; only who has the grant lock uses these -- */
byte seen_free, seen_waiting, chosen, own, picked;
byte asked[2], free_as_read[2];
bit contested, again;

hidden byte i, j, k, l, n, m, x;
hidden byte had[2], rest[2];

#define BIT(at) (1 << (at))
#define FREE(s) (holder[s] == 0 && !shut[s])
#define ROOM(c) (state[c] == WAITING && (NEED(c, 0) == 0 || FREE(0)) && NEED(c, 1) <= FREE(1) + FREE(2))
#define BOTH(c) (NEED(c, 0) > 0 && NEED(c, 1) > 0)
#define SHARED(c, d) ((NEED(c, 0) && NEED(d, 0)) || (NEED(c, 1) && NEED(d, 1)))
#define LIVE(c) (!dead[c] && session[c] == FRESH)
#define HOLDS(c) (state[c] == GRANTED || state[c] == HELD)
#define FIRST(s) ((s) == 0 -> 0 : 1) /* of the slots of that limit */
#define PAST(s) ((s) == 0 -> 1 : 3)

inline count(c) { had[0] = 0; had[1] = 0;
  for (i : 0 .. SLOTS - 1) { if :: holder[i] == c + 1 -> had[LIMIT(i)] = had[LIMIT(i)] + 1 :: else fi } }

/* The invariants; after every commit. */
inline check() {
  rest[0] = 0; rest[1] = 0;
  for (j : 0 .. CLIENTS - 1) {
    count(j); rest[0] = rest[0] + had[0]; rest[1] = rest[1] + had[1];
    if :: HOLDS(j) -> assert(had[0] == NEED(j, 0) && had[1] == NEED(j, 1)) /* I2: all */
       :: else -> assert(had[0] + had[1] == 0) fi;                           /* I2: or none */
    assert(!(inside[j] && LIVE(j)) || state[j] == HELD) };                   /* I1, I7: nobody takes a live holder's */
  assert(rest[0] <= 1 && (rest[1] <= capacity || draining));                 /* I1: what is held is no more than there is */
  i = 0; j = 0; n = 0 }

/* I1 after a shrink: the excess never grows. Of a claim that was admitted just now. */
inline admitted(c) {
  rest[1] = (holder[1] != 0) + (holder[2] != 0);
  assert(NEED(c, 1) == 0 || rest[1] <= capacity) }

inline free_slots(c) {
  for (i : 0 .. SLOTS - 1) { if :: holder[i] == c + 1 -> holder[i] = 0 :: else fi } }
inline leave_queue(c) {
  if :: place[c] > 0 -> for (i : 0 .. CLIENTS - 1) { if :: place[i] > place[c] -> place[i]-- :: else fi }; place[c] = 0
     :: else fi }
inline join_queue(c) {
  if :: place[c] == 0 -> n = 0; for (i : 0 .. CLIENTS - 1) { if :: place[i] > n -> n = place[i] :: else fi }; place[c] = n + 1
     :: else fi }
inline end_claim(c) { free_slots(c); leave_queue(c); state[c] = ENDED; overdue[c] = 0 }
inline unlock(me) {
  for (i : 0 .. SLOTS - 1) { if :: slot_lock[i] == me + 1 -> slot_lock[i] = 0 :: else fi };
  for (i : 0 .. CLIENTS - 1) { if :: claim_lock[i] == me + 1 -> claim_lock[i] = 0 :: else fi } }
inline end_pass(me) {
  if :: grant_lock == me + 1 -> grant_lock = 0;
        seen_free = 0; seen_waiting = 0; chosen = 0; own = 0; picked = 0; asked[0] = 0; asked[1] = 0;
        free_as_read[0] = 0; free_as_read[1] = 0; again = 0
     :: else fi }

inline read_free(mask) { mask = 0; for (i : 0 .. SLOTS - 1) { if :: FREE(i) -> mask = mask | BIT(i) :: else fi } }

/* SELECT ... FOR UPDATE SKIP LOCKED LIMIT `most` of the slots of limit `lim` in `mask`: the newest row decides, and a row
   that fails it stays locked. `k` comes back as how many are its own, added to `mine`. */
inline lock_free(me, lim, mask, most, mine) {
  k = 0;
  for (i : 0 .. SLOTS - 1) {
    if :: LIMIT(i) == lim && (mask & BIT(i)) && slot_lock[i] == 0 && k < most ->
#ifndef WITHOUT_SLOT_LOCK
          slot_lock[i] = me + 1;
#endif
#ifdef WITHOUT_SLOT_RECHECK
          mine = mine | BIT(i); k++
#elif defined(CAPACITY_ON_LIMIT_INSTEAD) /* usable if its number is within the capacity that the snapshot saw */
          if :: holder[i] == 0 -> mine = mine | BIT(i); k++ :: else fi
#else
          if :: FREE(i) -> mine = mine | BIT(i); k++ :: else fi
#endif
       :: else fi } }

/* asking.LOOK: is there a limit with waiters and a free slot, or one that drains? A plain read: it sees no locks. */
inline look(found) {
  found = draining;
  for (i : 0 .. SLOTS - 1) { for (j : 0 .. CLIENTS - 1) {
    if :: FREE(i) && state[j] == WAITING && NEED(j, LIMIT(i)) > 0 -> found = 1 :: else fi } } }

/* I6 in a pass: who comes later gets no slot past one who came first, was in the queue when the pass read it, and fits
   by what the pass read and by what is there; where that one's slots are in somebody's hands, nobody passes it in that
   limit. Before the grants in `given` are written. */
inline check_order(given) {
  for (j : 0 .. CLIENTS - 1) {
    if :: (seen_waiting & BIT(j)) && state[j] == WAITING && !(given & BIT(j)) ->
       rest[0] = 0; rest[1] = 0; had[0] = 0; had[1] = 0;
       for (i : 0 .. SLOTS - 1) {
         if :: FREE(i) && (seen_free & BIT(i)) ->
               rest[LIMIT(i)] = rest[LIMIT(i)] + 1;
               if :: picked & BIT(i) -> had[LIMIT(i)] = had[LIMIT(i)] + 1 :: else fi
            :: else fi };
       for (i : 0 .. CLIENTS - 1) { if :: (given & BIT(i)) && place[i] < place[j] ->
          for (l : 0 .. 1) { rest[l] = (rest[l] > NEED(i, l) -> rest[l] - NEED(i, l) : 0);
                             had[l] = (had[l] > NEED(i, l) -> had[l] - NEED(i, l) : 0) } :: else fi };
       x = had[0] >= NEED(j, 0) && had[1] >= NEED(j, 1);
       if :: rest[0] >= NEED(j, 0) && rest[1] >= NEED(j, 1) ->
          for (i : 0 .. CLIENTS - 1) { for (l : 0 .. 1) {
             assert(!((given & BIT(i)) && place[i] > place[j] && NEED(i, l) > 0 && NEED(j, l) > 0) ||
                    !(x || had[l] < NEED(j, l) || !(own & BIT(j)))) } }
       :: else fi
    :: else fi }; i = 0; j = 0; l = 0; x = 0 }

/* Writes the grants in `given` over the slots in `picked`, in order of rank. */
inline write_grants(given) {
  check_order(given);
  for (m : 1 .. CLIENTS) { for (j : 0 .. CLIENTS - 1) {
    if :: (given & BIT(j)) && place[j] == m ->
       rest[0] = NEED(j, 0); rest[1] = NEED(j, 1); NEXT_EPOCH(n);
       for (i : 0 .. SLOTS - 1) {
         if :: (picked & BIT(i)) && rest[LIMIT(i)] > 0 ->
            rest[LIMIT(i)] = rest[LIMIT(i)] - 1; picked = picked & ~BIT(i); holder[i] = j + 1;
#ifdef EPOCHS
            assert(n > epoch[i]); epoch[i] = n /* I3 */
#endif
         :: else fi }
    :: else fi } };
  for (j : 0 .. CLIENTS - 1) {
    if :: given & BIT(j) -> state[j] = GRANTED; overdue[j] = 0; admitted(j) :: else fi }; j = 0 }

/* limits._fit: held ones stay; as many free rows as there is room for; all shut while more are held than allowed. */
inline fit() {
  n = (holder[1] != 0) + (holder[2] != 0);
  draining = n > capacity; x = (n > capacity -> 0 : capacity - n);
  for (i : 1 .. 2) {
#ifdef SHRINK_BY_NUMBER_INSTEAD
    shut[i] = i > capacity
#else
    if :: holder[i] != 0 -> shut[i] = draining
       :: holder[i] == 0 && x > 0 -> shut[i] = 0; x--
       :: else -> shut[i] = 1 fi
#endif
  };
#ifdef SHRINK_BY_NUMBER_INSTEAD
  draining = 0;
#endif
  i = 0; n = 0; x = 0 }
#define LOCKED(s) (slot_lock[s] != 0 && !(holder[s] == 0 && shut[s]))

/* Claims that ended after the pass had read them, and whose rows it therefore could not lock. */
#if defined(WITHOUT_CLAIM_LOCK) || defined(WITHOUT_CLAIM_RECHECK)
#define GONE_SINCE(c) 255
#else
#define GONE_SINCE(c) (255 - BIT(c))
#endif
/* SqlStore._grant: look, then grant until nothing is left. Thrown out: see THROWN. */
#define OR_THROWN_OUT :: atomic { thrown > 0 -> d_step { thrown--; unlock(me); end_pass(me) }; goto granted }
#ifdef LOOK_IN_TRANSACTION_INSTEAD
#define LOOKS_AGAIN looks_again
#else
#define LOOKS_AGAIN looks
#endif
#define TRY_GRANT_LOCK \
  atomic { if :: grant_lock == 0 -> grant_lock = me + 1 :: else -> found = 0; goto granted fi }
inline grant(me) {
  skip; /* everybody jumps past it: no label may stand first */
looks:
#ifdef LOOK_IN_TRANSACTION_INSTEAD
  goto looked; /* `found` was read before the commit */
looks_again:
#endif
  atomic { skip; d_step { look(found); i = 0; j = 0 }; if :: !found -> goto granted :: else fi };
looked:
#ifdef LOOK_IN_TRANSACTION_INSTEAD
  if :: !found -> goto granted :: else fi;
#endif
simply:
  /* Dialect.grant_simple: one statement after the one that takes the lock, then a look after the commit */
  TRY_GRANT_LOCK;
  atomic { d_step { /* the snapshot: of each limit the first in line that want nothing else, as many as fit */
    read_free(seen_free);
    for (j : 0 .. CLIENTS - 1) { if :: state[j] == WAITING -> seen_waiting = seen_waiting | BIT(j) :: else fi };
    for (l : 0 .. 1) {
      n = 0; for (i : FIRST(l) .. PAST(l) - 1) { if :: FREE(i) -> n++ :: else fi };
      x = (n > 0);
      for (m : 1 .. CLIENTS) { for (j : 0 .. CLIENTS - 1) {
        if :: x && place[j] == m && state[j] == WAITING && NEED(j, l) > 0 ->
           if :: !BOTH(j) && asked[l] + NEED(j, l) <= n -> chosen = chosen | BIT(j); asked[l] = asked[l] + NEED(j, l)
              :: else -> x = 0 fi
        :: else fi } } };
    i = 0; j = 0; l = 0; m = 0; n = 0; x = 0 };
    if :: chosen == 0 -> goto writes :: else fi };
  d_step { lock_claims(me); lock_free(me, 0, seen_free, asked[0], picked); lock_free(me, 1, seen_free, asked[1], picked);
           i = 0; j = 0; k = 0 };
writes:
  atomic { skip; d_step { /* the commit: of each line those before the first that could not be had */
    for (l : 0 .. 1) {
      rest[l] = 0; for (i : FIRST(l) .. PAST(l) - 1) { if :: picked & BIT(i) -> rest[l] = rest[l] + 1 :: else fi };
      x = 1;
      for (m : 1 .. CLIENTS) { for (j : 0 .. CLIENTS - 1) {
        if :: (chosen & BIT(j)) && place[j] == m && NEED(j, l) > 0 ->
           if :: x && (own & BIT(j)) && rest[l] >= NEED(j, l) -> rest[l] = rest[l] - NEED(j, l)
              :: else ->
#ifndef WITHOUT_CONTESTED
                 x = 0;
#endif
                 chosen = chosen & ~BIT(j) fi
        :: else fi } } };
    for (j : 0 .. CLIENTS - 1) { if :: place[j] == 0 -> chosen = chosen & GONE_SINCE(j) :: else fi };
    again = chosen != 0; write_grants(chosen); unlock(me); found = again; end_pass(me); check() };
  if :: !found -> goto checks :: else fi };
#ifdef WITHOUT_LOOK_AFTER_GRANT
  goto granted;
#endif
  atomic { d_step { look(found); i = 0; j = 0 }; if :: found -> goto simply :: else -> goto granted fi };
checks:
  atomic { skip; d_step { look(found); i = 0; j = 0 }; if :: !found -> goto granted :: else fi };
  /* SqlStore._grant_batch: a transaction of several statements */
  TRY_GRANT_LOCK;
#ifndef WITHOUT_SETTLE_DRAINED
  if :: draining && (holder[1] != 0) + (holder[2] != 0) <= capacity -> /* limits.settle_drained */
        if :: d_step { !LOCKED(1) && !LOCKED(2) -> fit() } OR_THROWN_OUT fi
     :: else fi;
#endif
  if :: atomic { d_step { /* granting._that_fit: the first that fit everywhere by a plain read */
    read_free(seen_free);
    for (i : 0 .. SLOTS - 1) { if :: FREE(i) -> free_as_read[LIMIT(i)] = free_as_read[LIMIT(i)] + 1 :: else fi };
    for (j : 0 .. CLIENTS - 1) {
      if :: state[j] == WAITING -> seen_waiting = seen_waiting | BIT(j);
         if :: NEED(j, 0) <= free_as_read[0] && NEED(j, 1) <= free_as_read[1] ->
               chosen = chosen | BIT(j); asked[0] = asked[0] + NEED(j, 0); asked[1] = asked[1] + NEED(j, 1)
            :: else fi
      :: else fi }; i = 0; j = 0 };
    if :: chosen == 0 -> goto ends_batch :: else fi } OR_THROWN_OUT fi;
  if :: atomic { d_step { lock_claims(me); j = 0 }; /* granting.STILL_WAITING */
                 if :: asked[0] == 0 -> goto locks_1 :: else fi } OR_THROWN_OUT fi;
  if :: atomic { d_step { read_free(x); lock_free(me, 0, x, asked[0], picked); i = 0; k = 0; x = 0 }; /* granting._lock */
                 if :: asked[1] == 0 -> goto ends_batch :: else fi } OR_THROWN_OUT fi;
locks_1:
  if :: atomic { skip; d_step { read_free(x); lock_free(me, 1, x, asked[1], picked); i = 0; k = 0; x = 0 } } OR_THROWN_OUT fi;
ends_batch:
  atomic { skip; d_step {
    rest[0] = (picked & 1) != 0; rest[1] = ((picked & 2) != 0) + ((picked & 4) != 0);
    again = 0; contested = 0; x = 0; /* `x`: the contested limits */
    for (m : 1 .. CLIENTS) { for (j : 0 .. CLIENTS - 1) {
      if :: (chosen & BIT(j)) && place[j] == m ->
         if :: (NEED(j, 0) > 0 && (x & 1)) || (NEED(j, 1) > 0 && (x & 2)) -> chosen = chosen & ~BIT(j)
            :: else ->
               if :: (own & BIT(j)) && NEED(j, 0) <= rest[0] && NEED(j, 1) <= rest[1] ->
                     for (l : 0 .. 1) { rest[l] = rest[l] - NEED(j, l); free_as_read[l] = free_as_read[l] - NEED(j, l) }
                  :: else ->
                     chosen = chosen & ~BIT(j);
                     for (l : 0 .. 1) {
                       if :: NEED(j, l) > 0 && (!(own & BIT(j)) ||
                                rest[l] < (NEED(j, l) < free_as_read[l] -> NEED(j, l) : free_as_read[l])) ->
#ifndef WITHOUT_CONTESTED
                             x = x | BIT(l);
#endif
                             contested = 1
                          :: else fi }
               fi
         fi
      :: else fi } };
    for (j : 0 .. CLIENTS - 1) {
      if :: (chosen & BIT(j)) && place[j] == 0 -> chosen = chosen & GONE_SINCE(j); contested = 1 :: else fi };
    n = (chosen != 0 || contested); write_grants(chosen); unlock(me); end_pass(me); found = n; contested = 0;
    l = 0; m = 0; n = 0; x = 0; rest[0] = 0; rest[1] = 0; check() };
  if :: found -> goto LOOKS_AGAIN :: else fi };
#ifndef WITHOUT_LOOK_AFTER_BATCH
  atomic { d_step { found = 0; for (j : 0 .. CLIENTS - 1) { if :: ROOM(j) -> found = 1 :: else fi }; j = 0 };
           if :: found -> goto LOOKS_AGAIN :: else fi };
#endif
granted: skip }

inline lock_claims(me) {
  for (j : 0 .. CLIENTS - 1) {
    if :: (chosen & BIT(j)) ->
#ifdef WITHOUT_CLAIM_LOCK
       own = own | BIT(j)
#else
       if :: claim_lock[j] == 0 -> claim_lock[j] = me + 1;
#ifdef WITHOUT_CLAIM_RECHECK
             own = own | BIT(j)
#else
             if :: state[j] == WAITING -> own = own | BIT(j) :: else fi
#endif
          :: else fi
#endif
    :: else fi } }

#define WHOLE(mask, c) ((NEED(c, 0) == 0 || (mask & 1)) && NEED(c, 1) <= ((mask & 2) != 0) + ((mask & 4) != 0))
#define UNLOCKED(c, s) (holder[s] != c + 1 || slot_lock[s] == 0)

proctype Client(byte c) {
  byte saw, mine, round; bit found, ahead;
#ifdef EPOCHS
  byte token;
#endif
  {
  skip;
asks: /* Dialect.acquire, one statement: the snapshot */
  atomic { skip; d_step {
    read_free(saw); mine = 0; ahead = 0; found = session[c] != GONE;
    for (i : 0 .. CLIENTS - 1) {
      if :: i != c && state[i] == WAITING && SHARED(c, i) -> ahead = 1 :: else fi };
#ifdef EPOCH_BEFORE_LOCK_INSTEAD
    NEXT_EPOCH(token);
#endif
    i = 0 };
    if :: !found -> goto lost
#ifndef WITHOUT_QUEUE_CHECK
       :: found && ahead -> goto commits
#endif
       :: else fi;
    if :: NEED(c, 0) == 0 -> goto picks_1 :: else fi };
  atomic { d_step { lock_free(c, 0, saw, NEED(c, 0), mine); i = 0; k = 0 }; if :: NEED(c, 1) == 0 -> goto commits :: else fi };
picks_1:
  atomic { skip; d_step { lock_free(c, 1, saw, NEED(c, 1), mine); i = 0; k = 0 } };
commits:
  atomic { skip; d_step {
#ifdef WITHOUT_COUNT_CHECK
    found = mine != 0;
#else
    found = WHOLE(mine, c);
#endif
    if :: found ->
       assert(!ahead); /* I6: no newcomer passes one whom it could see in the queue */
#if defined(EPOCHS) && !defined(EPOCH_BEFORE_LOCK_INSTEAD)
       NEXT_EPOCH(token);
#endif
       for (i : 0 .. SLOTS - 1) {
         if :: mine & BIT(i) ->
#ifdef EPOCHS
            assert(token > epoch[i]); epoch[i] = token; /* I3 */
#endif
            holder[i] = c + 1
            :: else fi };
       state[c] = HELD; inside[c] = 1; admitted(c)
    :: else -> join_queue(c); state[c] = WAITING fi;
#ifdef LOOK_IN_TRANSACTION_INSTEAD
    x = 0;
    for (i : 0 .. SLOTS - 1) { if :: (saw & BIT(i)) && NEED(c, LIMIT(i)) > 0 -> x = 1 :: else fi };
    ahead = found; found = x; x = 0;
#else
    ahead = found; found = 0;
#endif
#ifdef EPOCHS
    token = 0;
#endif
    saw = 0; unlock(c); mine = 0; i = 0; n = 0; check() };
    if :: ahead -> ahead = 0; found = 0; goto works :: else fi;
#ifdef WITHOUT_LOOK_AFTER_QUEUE
    goto waits };
#else
    goto looks };
#endif
  grant(c);
  atomic { found = 0; if :: state[c] == ENDED -> goto over :: else fi };
waits:
  if :: atomic { state[c] == GRANTED && claim_lock[c] == 0 && !silent[c] -> /* Dialect.acknowledge: one statement */
           state[c] = HELD; overdue[c] = 0; leave_queue(c); inside[c] = 1; check(); goto works }
#ifdef ACKNOWLEDGE_ANY_STATE_INSTEAD
     :: atomic { state[c] == PARKED && claim_lock[c] == 0 && !silent[c] ->
           state[c] = HELD; leave_queue(c); inside[c] = 1; check(); goto works }
#endif
     :: atomic { state[c] == PARKED && claim_lock[c] == 0 && !silent[c] && session[c] != GONE -> /* touching.touch */
           join_queue(c); state[c] = WAITING; check();
#ifdef WITHOUT_LOOK_AFTER_PARK
           goto waits }
#else
           goto looks }
#endif
     :: atomic { state[c] == ENDED || session[c] == GONE -> goto lost }
     :: atomic { withdrawals > 0 && !silent[c] -> withdrawals--; goto releases }
     :: atomic { silences > 0 && !silent[c] -> silences--; silent[c] = 1; goto waits }
  fi;
works: /* the user's code, until it is over or the holder learns that its session is gone */
#ifdef KEEPS
  c != CLIENTS - 1; /* that one is not over in sight of the model */
#endif
  atomic { skip; inside[c] = 0; if :: session[c] == GONE -> goto lost :: else fi };
releases: /* Dialect.release, or SqlStore.release of one that waits: the claim's row first */
#ifdef RELEASE_BY_SLOT_INSTEAD
  atomic { claim_lock[c] == 0 -> claim_lock[c] = c + 1 };
  d_step { for (i : 0 .. SLOTS - 1) { if :: NEED(c, LIMIT(i)) > 0 -> holder[i] = 0 :: else fi };
           end_claim(c); unlock(c); i = 0; check() };
  goto after_release;
#endif
  atomic { claim_lock[c] == 0 -> if :: state[c] == ENDED -> goto over :: else -> claim_lock[c] = c + 1 fi;
           if :: !HOLDS(c) -> goto frees :: NEED(c, 0) == 0 && HOLDS(c) -> goto frees_1 :: else fi };
  atomic { slot_lock[0] == 0 -> slot_lock[0] = c + 1; if :: NEED(c, 1) == 0 -> goto frees :: else fi };
frees_1:
  atomic { UNLOCKED(c, 1) && UNLOCKED(c, 2) ->
           d_step { for (i : 1 .. 2) { if :: holder[i] == c + 1 -> slot_lock[i] = c + 1 :: else fi }; i = 0 } };
frees:
#ifdef LOOK_IN_TRANSACTION_INSTEAD
  atomic { skip; d_step {
    found = 0; for (j : 0 .. CLIENTS - 1) { if :: state[j] == WAITING && SHARED(c, j) -> found = 1 :: else fi }; j = 0 } };
#endif
  atomic { skip; d_step { end_claim(c); unlock(c); i = 0; check() } };
after_release:
#ifndef WITHOUT_LOOK_AFTER_RELEASE
  goto looks;
#endif
over:
  if :: atomic { repeats > 0 -> repeats--; goto releases }
     :: atomic { skip; state[c] = (round + 1 == ROUNDS -> ENDED : NONE); round = (ROUNDS -> round + 1 : 0);
           if :: ROUNDS == 0 || round < ROUNDS -> goto asks :: else -> goto ends fi }
  fi;
lost:
#if ROUNDS == 0
  atomic { (state[c] == ENDED || state[c] == NONE) -> state[c] = NONE; session[c] = FRESH; goto asks };
#else
  if :: atomic { repeats > 0 && state[c] != NONE -> repeats--; goto releases } :: goto ends fi;
#endif
  } unless { dead[c] };
ends:
  atomic { skip; d_step { if :: dead[c] -> unlock(c); end_pass(c) :: else fi; inside[c] = 0; done[c] = 1; i = 0 } }
}

#ifdef REAP_ONLY_ITS_OWN_INSTEAD
#define UNOWNED(c) false
#else
#define UNOWNED(c) (session[c] == GONE && state[c] != ENDED && state[c] != NONE)
#endif
#ifdef WITHOUT_PARKING
#define DUE(c) (session[c] == EXPIRED || UNOWNED(c))
#else
#define DUE(c) (session[c] == EXPIRED || UNOWNED(c) || (state[c] == GRANTED && overdue[c]))
#endif
#define ALL(f) (f(0) && f(1) && (CLIENTS < 3 || f(CLIENTS - 1)))
#define ANY(f) (f(0) || f(1) || (CLIENTS > 2 && f(CLIENTS - 1)))

/* A sweep in some process that lives: SqlStore.sweep, reaping.reap, and a pass after it. */
active proctype Sweeper() {
  byte me = SWEEPER, expired, unowned, late; bit found;
sweeps:
end:
  if :: d_step { ANY(DUE) -> /* reaping.due: a plain read */
#if defined(REAP_WITHOUT_RECHECK)
          for (i : 0 .. CLIENTS - 1) { if :: session[i] == EXPIRED -> expired = expired | BIT(i) :: else fi };
#endif
#if defined(PARK_WITHOUT_RECHECK)
          for (i : 0 .. CLIENTS - 1) { if :: state[i] == GRANTED && overdue[i] -> late = late | BIT(i) :: else fi };
#endif
          i = 0 }
#ifdef POLLS
     :: ANY(ROOM) -> goto looks
#endif
  fi;
  if :: atomic { grant_lock == 0 -> grant_lock = SWEEPER + 1 } :: grant_lock != 0 -> goto sweeps fi;
  d_step { /* DELETE the sessions whose locked row has expired */
    for (i : 0 .. CLIENTS - 1) {
      if :: session[i] == EXPIRED ->
#ifndef REAP_WITHOUT_RECHECK
         expired = expired | BIT(i);
#endif
#if !defined(REAP_WITHOUT_RECHECK) && !defined(REAP_BY_EXPIRY_INSTEAD)
         session_locked[i] = 1
#endif
      :: else fi }; i = 0 };
  d_step { /* the claims without a session, and those not acknowledged in time: those not locked by somebody else */
    for (i : 0 .. CLIENTS - 1) {
#ifdef REAP_ONLY_ITS_OWN_INSTEAD
      if :: (expired & BIT(i)) && state[i] != ENDED && state[i] != NONE && claim_lock[i] == 0 ->
#else
      if :: ((expired & BIT(i)) || session[i] == GONE) && state[i] != ENDED && state[i] != NONE && claim_lock[i] == 0 ->
#endif
            claim_lock[i] = SWEEPER + 1; unowned = unowned | BIT(i)
#ifdef PARK_WITHOUT_RECHECK
         :: else -> if :: (late & BIT(i)) && claim_lock[i] == 0 -> claim_lock[i] = SWEEPER + 1 :: else -> late = late & ~BIT(i) fi
#elif defined(WITHOUT_PARKING)
         :: else
#else
         :: else -> if :: state[i] == GRANTED && overdue[i] && claim_lock[i] == 0 ->
                           claim_lock[i] = SWEEPER + 1; late = late | BIT(i)
                       :: else fi
#endif
      fi }; i = 0 };
  if :: unowned != 0 || late != 0 -> /* admission.free_slots: waits for their rows */
        if :: d_step { (holder[0] == 0 || !((unowned | late) & BIT(holder[0] - 1)) || slot_lock[0] == 0) &&
                       (holder[1] == 0 || !((unowned | late) & BIT(holder[1] - 1)) || slot_lock[1] == 0) &&
                       (holder[2] == 0 || !((unowned | late) & BIT(holder[2] - 1)) || slot_lock[2] == 0) ->
                 for (i : 0 .. SLOTS - 1) {
                   if :: holder[i] != 0 && ((unowned | late) & BIT(holder[i] - 1)) -> slot_lock[i] = SWEEPER + 1 :: else fi };
                 i = 0 }
           :: thrown > 0 -> d_step { thrown--; unlock(SWEEPER); end_pass(SWEEPER); unowned = 0; late = 0; expired = 0;
                 for (i : 0 .. CLIENTS - 1) { session_locked[i] = 0 }; i = 0 }; goto sweeps
        fi
     :: else fi;
  d_step {
    for (j : 0 .. CLIENTS - 1) {
      if :: expired & BIT(j) ->
            assert(session[j] == EXPIRED); /* I1: a beat that came through keeps its session */
            session[j] = GONE; session_locked[j] = 0 :: else fi;
      if :: unowned & BIT(j) -> end_claim(j)
         :: !(unowned & BIT(j)) && (late & BIT(j)) -> free_slots(j); overdue[j] = 0;
#ifdef QUEUE_AGAIN_INSTEAD
            state[j] = WAITING
#else
            state[j] = PARKED
#endif
         :: else fi };
    unlock(SWEEPER); end_pass(SWEEPER); unowned = 0; late = 0; expired = 0; i = 0; j = 0; check() };
  grant(SWEEPER);
  atomic { found = 0; goto sweeps }
}

/* changes.settle_all: one limit in a transaction under the grant lock, then a pass. */
active proctype Admin() {
  byte me = ADMIN; bit found;
changing:
end:
  atomic { changes > 0 && grant_lock == 0 -> grant_lock = ADMIN + 1; changes-- };
#ifdef SHRINK_WITHOUT_LOCK
  d_step { x = (holder[1] != 0) + (holder[2] != 0); found = x > 1; x = 0 };
  d_step { capacity = 3 - capacity; fit(); draining = found; unlock(ADMIN); end_pass(ADMIN); check() };
#else
  d_step { !LOCKED(1) -> slot_lock[1] = (holder[1] != 0 || !shut[1] -> ADMIN + 1 : 0) };
  d_step { !LOCKED(2) -> slot_lock[2] = (holder[2] != 0 || !shut[2] -> ADMIN + 1 : 0) };
  d_step { capacity = 3 - capacity; fit(); unlock(ADMIN); end_pass(ADMIN); check() };
#endif
#ifndef WITHOUT_LOOK_AFTER_CHANGE
  grant(ADMIN);
#endif
  atomic { found = 0; goto changing }
}

/* Time and bad luck. */
active proctype World() {
end:
  do
  :: crashes > 0 -> if :: d_step { crashes--; dead[0] = !done[0] } :: d_step { crashes--; dead[1] = !done[1] }
#if CLIENTS > 2
        :: d_step { crashes--; dead[2] = !done[2] }
#endif
        :: crashes = 0 fi
  :: stalls > 0 -> if :: atomic { !done[0] && session[0] == FRESH -> stalls--; session[0] = EXPIRED }
        :: atomic { !done[1] && session[1] == FRESH -> stalls--; session[1] = EXPIRED }
#if CLIENTS > 2
        :: atomic { !done[2] && session[2] == FRESH -> stalls--; session[2] = EXPIRED }
#endif
        :: stalls = 0 fi
  :: lates > 0 -> if :: atomic { state[0] == GRANTED -> lates--; overdue[0] = 1 }
        :: atomic { state[1] == GRANTED -> lates--; overdue[1] = 1 }
#if CLIENTS > 2
        :: atomic { state[2] == GRANTED -> lates--; overdue[2] = 1 }
#endif
        :: lates = 0 fi
  :: silences > 0 -> silences = 0
  :: thrown > 0 -> thrown = 0
  :: withdrawals > 0 -> withdrawals = 0
  :: repeats > 0 -> repeats = 0
  :: changes == 1 && CHANGES == 1 -> changes = 0
#define AS_TIME_GOES_BY(c) \
  :: atomic { dead[c] && session[c] == FRESH -> session[c] = EXPIRED } \
  :: atomic { silent[c] && state[c] == GRANTED && !overdue[c] -> overdue[c] = 1 } \
  :: atomic { session[c] == EXPIRED && !dead[c] && !session_locked[c] -> session[c] = FRESH } /* SqlStore.beat */
  AS_TIME_GOES_BY(0)
  AS_TIME_GOES_BY(1)
#if CLIENTS > 2
  AS_TIME_GOES_BY(2)
#endif
  od
}

/* I4, I5: when nothing moves any more nobody who lives waits, and nobody holds. */
active proctype Monitor() {
end:
  timeout -> d_step {
    for (i : 0 .. CLIENTS - 1) { assert(!ROOM(i)) };
#ifndef KEEPS
    for (i : 0 .. CLIENTS - 1) { assert(done[i] || silent[i]); assert(!HOLDS(i)) };
    for (i : 0 .. SLOTS - 1) { assert(holder[i] == 0 && slot_lock[i] == 0) };
#endif
    assert(grant_lock == 0); i = 0 }
}

init { atomic { for (i : 0 .. CLIENTS - 1) { run Client(i) }; i = 0 } }

#ifdef LIVENESS /* I4 under fairness, where clients come for ever: who waits is granted */
ltl served { [] ((state[0] == WAITING -> <> (state[0] != WAITING)) && (state[1] == WAITING -> <> (state[1] != WAITING))) }
#endif
