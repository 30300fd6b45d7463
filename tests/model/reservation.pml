/* Who is served when narrow claims never cease: rank, ageing and reservation (reservation.py, granting.grant). A step is a
   transaction; what happens inside of one is in slots.pml. Claims 0 and 1 are wide and want both slots of a pool, once;
   2 and 3 are streams of narrow ones, for ever. Every WITHOUT_... or ..._INSTEAD takes a rule out: the checker must then
   find fault. */
#define CLAIMS 4
#define NEED(c) ((c) < 2 -> 2 : 1)
#define NONE 0
#define WAITING 1
#define HELD 2
byte state[CLAIMS], place[CLAIMS];
bit aged[CLAIMS];
bit window; /* the 60 s of every 120 s; it is assumed that holders let go within one */
byte room = 2;
hidden byte i, m, n, first;

/* reservation.reservations: the first aged waiter, by arrival, that is barred; a pool has one reserver. */
inline find_reserver() {
  first = CLAIMS;
#ifndef WITHOUT_RESERVATION
  for (i : 0 .. CLAIMS - 1) {
    if :: window && state[i] == WAITING && aged[i] && NEED(i) > room && (first == CLAIMS || place[i] < place[first]) ->
          first = i
       :: else fi }
#endif
}
/* reservation.fits: room beyond what is kept for the reserver, unless it comes before that one or is it. */
#ifdef BINDS_EVERY_RESERVER_INSTEAD /* each aged waiter keeps room against all others */
#define KEPT(c) ((c) != 0 && window && state[0] == WAITING && aged[0] -> 2 : \
                 ((c) != 1 && window && state[1] == WAITING && aged[1] -> 2 : 0))
#else
#define KEPT(c) (first != CLAIMS && (c) != first && !(aged[c] && place[c] < place[first]) -> 2 : 0)
#endif

inline pass() {
  find_reserver();
  for (m : 1 .. CLAIMS) { for (n : 0 .. CLAIMS - 1) {
    if :: state[n] == WAITING && place[n] == m && room >= NEED(n) + KEPT(n) -> room = room - NEED(n); state[n] = HELD
       :: else fi } };
  i = 0; m = 0; n = 0; first = 0 }
inline queue(c) {
  m = 0; for (i : 0 .. CLAIMS - 1) { if :: place[i] > m -> m = place[i] :: else fi };
  place[c] = m + 1; state[c] = WAITING; pass() }
inline release(c) {
  for (i : 0 .. CLAIMS - 1) { if :: place[i] > place[c] -> place[i]-- :: else fi };
  place[c] = 0; aged[c] = 0; state[c] = NONE; room = room + NEED(c); assert(room <= 2); pass() }

proctype Wide(byte c) { d_step { queue(c) }; d_step { state[c] == HELD -> release(c) } }
proctype Narrow(byte c) {
  do
  :: d_step { state[c] == NONE -> queue(c) }
  :: d_step { state[c] == HELD -> release(c) }
  od }

proctype Time() {
  do
  :: d_step { state[0] == WAITING && !aged[0] -> aged[0] = 1; pass() }
  :: d_step { state[1] == WAITING && !aged[1] -> aged[1] = 1; pass() }
  :: d_step { !window && (aged[0] || aged[1]) -> window = 1; pass() }
  :: d_step { window && state[0] != WAITING && state[1] != WAITING -> window = 0; pass() }
  od }

init { atomic { run Wide(0); run Wide(1); run Narrow(2); run Narrow(3); run Time() } }

/* I6: who waits is served, narrow ones too. */
ltl served { [] ((state[0] == WAITING -> <> (state[0] == HELD)) && (state[1] == WAITING -> <> (state[1] == HELD)) &&
                 (state[2] == WAITING -> <> (state[2] == HELD)) && (state[3] == WAITING -> <> (state[3] == HELD))) }
