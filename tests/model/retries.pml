/* One claim id under retry, duplicate and reorder: what SqlStore.acquire, release and beat do with a message that comes
   twice, late, or never. Two slots, so that a second grant of the same claim would find one. Each message is one
   transaction: what happens inside of one is in slots.pml. Every WITHOUT_... or ..._INSTEAD takes a guard out: the
   checker must then find fault. */
#define NONE 0
#define HELD 1
#define ENDED 2 /* the tombstone */

byte state;            /* of the claim's row */
byte slots;            /* how many name the claim */
byte room = 2;         /* free ones */
bit known, given_back; /* the process answers for the claim; it has sent a release and will not ask again */
byte acquires, releases; /* messages under way */
bit ended; /* a release has come, or the claim was ended: whatever comes now must not be granted */
byte sends = 3;

inline granted() { assert(!ended) } /* I7: a claim id that has ended is never granted again */
inline check() { assert(slots == (state == HELD)) } /* I2, I7: once, and only while the claim is held */

active proctype Process() {
  known = 1; acquires = 1;
  do
  :: atomic { sends > 0 && !given_back -> sends--; acquires++ }  /* the answer was lost: asked again, the same id */
  :: atomic { !given_back -> given_back = 1; known = 0; releases++ } /* Request.withdraw, Leases.release */
  :: atomic { sends > 0 && given_back -> sends--; releases++ }   /* its answer was lost: sent again */
  :: given_back -> break
  od
}

active proctype Network() {
end:
  do
  :: atomic { acquires > 0 -> acquires--; /* Dialect.acquire: everything hangs on the claim's INSERT ... ON CONFLICT */
#ifdef PICK_BESIDE_THE_CLAIM_INSTEAD
       if :: room > 0 -> room--; slots++; state = (state == NONE -> HELD : state) :: else fi;
#else
       if :: state == NONE && room > 0 -> room--; slots++; state = HELD; granted() :: else fi; /* else it is told how it stands */
#endif
       check() }
  :: atomic { acquires > 0 -> acquires-- } /* lost on the way */
  :: atomic { releases > 0 -> releases--; ended = 1; /* SqlStore.release */
       if :: state == HELD -> room++; slots--;
#ifdef WITHOUT_TOMBSTONE
             state = NONE
#else
             state = ENDED
#endif
#ifdef RELEASE_TWICE_INSTEAD
          :: state == ENDED -> room++; slots--
#endif
#ifndef WITHOUT_BURIAL
          :: state == NONE -> state = ENDED /* SqlStore._bury: it came before its acquire */
#endif
          :: else fi; check() }
  :: atomic { releases > 0 -> releases-- }
#ifndef WITHOUT_END_OF_UNKNOWN
  :: atomic { !known && state == HELD -> room++; slots--; state = ENDED; ended = 1; check() } /* SqlStore.beat: not known, ended */
#endif
  od
}

/* I7, I5: when every message has come or is lost, nothing is held for a process that does not know of it. */
active proctype Monitor() {
end:
  timeout -> assert(!(given_back && slots > 0))
}
