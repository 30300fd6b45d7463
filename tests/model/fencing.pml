/* Who knows first that a lease is lost: session.ProcessSession against reaping.reap. Here time counts: a tick moves all
   clocks, the store's and the holder's (which run equally fast), by one; a message takes as long as it likes, or is lost.
   Every WITHOUT_... or ..._INSTEAD takes a guard out: the checker must then find fault. */
#define TTL 4
#define MARGIN 1
#define GRACE 1
#define NOTICE 1 /* ticks until a running holder has been told: the watching thread looks that often */
#define NEVER 15

byte expires = TTL;     /* of the session row, in ticks from now; 0: TTL is over, then the grace runs */
byte grace = GRACE;
bit row = 1;            /* the session is there */
bit granted_again;      /* the store has given its slots to somebody else */
byte fence = TTL - MARGIN; /* ticks from now until the holder does not trust its lease any more */
bit lost, stopped;      /* lost: the holder knows, for good */
bit woken;              /* it went on after a stop that lasted too long; it is told within NOTICE */
byte due = NOTICE;      /* ticks that the watching thread has left to tell it */
byte sent = NEVER;      /* ticks since the beat under way was sent */
byte answered = NEVER;  /* ticks since the beat whose answer is under way was sent */
bit refused;
byte stops = 2;

#ifdef WITHOUT_MARGIN
#define HOLDER_COUNTS (TTL + GRACE + 1)
#else
#define HOLDER_COUNTS (TTL - MARGIN)
#endif

active proctype Time() {
end:
  do
  :: atomic { !granted_again && (stopped || lost || fence > 0 || due > 0) ->
       if :: expires > 0 -> expires-- :: expires == 0 && grace > 0 -> grace-- :: else fi;
       if :: fence > 0 -> fence-- :: fence == 0 && !stopped && due > 0 -> due-- :: else fi;
       if :: sent < NEVER - 1 -> sent++ :: else fi;
       if :: answered < NEVER - 1 -> answered++ :: else fi }
  :: atomic { stops > 0 && !stopped -> stops--; stopped = 1 } /* SIGSTOP, or the machine sleeps: its clock runs on */
  :: atomic { stopped -> stopped = 0; woken = (fence == 0); due = (fence == 0 -> NOTICE : due) }
  od
}

active proctype Holder() {
end:
  do
  :: atomic { !stopped && !lost && fence == 0 -> lost = 1 } /* Lease.lost, ProcessSession._watch */
  :: atomic { !stopped && !lost && sent == NEVER && answered == NEVER -> sent = 0 } /* ProcessSession._beat_until */
  :: atomic { !stopped && answered != NEVER ->
       if :: refused -> lost = 1
#ifdef LOST_NOT_FOR_GOOD_INSTEAD
          :: !refused -> lost = 0;
#else
          :: !refused && lost -> skip
          :: !refused && !lost ->
#endif
#ifdef FENCE_FROM_ANSWER_INSTEAD
             fence = HOLDER_COUNTS;
#else
             fence = (answered < HOLDER_COUNTS -> HOLDER_COUNTS - answered : 0);
#endif
             due = (fence > 0 -> NOTICE : due)
       fi; answered = NEVER;
       assert(lost || !granted_again || fence == 0) /* who has lost its slots never trusts them again */ }
  od
}

active proctype Store() {
end:
  do
  :: atomic { sent != NEVER -> /* SqlStore.beat */
       if :: row -> expires = TTL; grace = GRACE; refused = 0
#ifdef BEAT_WRITES_THE_ROW_INSTEAD
          :: !row -> row = 1; expires = TTL; grace = GRACE; refused = 0
#else
          :: !row -> refused = 1
#endif
       fi; answered = sent; sent = NEVER }
  :: atomic { sent != NEVER -> sent = NEVER } /* it got lost on the way; the holder tries again */
#ifdef WITHOUT_GRACE
  :: atomic { row && expires == 0 -> row = 0 }
#else
  :: atomic { row && expires == 0 && grace == 0 -> row = 0 }
#endif
  :: atomic { !row && !granted_again -> granted_again = 1;
       assert(lost || stopped || woken) /* I9: the holder knows before, unless it was stopped */ }
  od
}
