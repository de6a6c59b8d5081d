/* Settings of handshake.pml, all from the command line.
 *
 *   W, SLOTS       ranks; slots a rank
 *   CALLS, CALL_n  the program: the n-th call as a code SBA of three digits, S: a size that ranks must agree on (0 or 1);
 *                  B: blocks; A: algorithm, 1 one-shot, 2 two-shot, 3 registered
 *   ODD_CALLS, ODD_n   the last rank's program where it differs: a missing, extra or mismatched call
 *   MAY_FAIL=1     a failure is expected; else one is an error (a false alarm)
 *   FAILS=mask     the ranks that must have failed at the end
 *   DEAD=1         the last rank is killed at any moment
 *   STREAMS=2      the last rank issues its calls from two streams that nothing orders
 *   REPLAY=1       all calls of one code have one id, as the replays of a captured call have
 *   LIMIT          of a wait: 0 none, 1 when nothing moves, 2 at any moment
 *   SEQUENCE_BITS  of the sequence number: small ones show what happens when it wraps
 * Mutations, each of which must be found out:
 *   HISTORICAL=1    the second phase's places lie behind as many of the first as the call has blocks; the flag is a
 *                   colour counted by the host; waits have no limit. HISTORICAL=2: the same, and waits with `>=`
 *   NO_PARITY       one place for the first phase             SHARED_PHASES   one place for both phases
 *   FLAG_FIRST      flags before messages                     NO_FINGERPRINT  flags hold the sequence number only
 *   NO_TICKET       an overlapping call goes on               SEQUENCE_FIRST  begin reads the number before the ticket
 *   NO_END_FLAG     registered calls without second phase     NO_LAST_LOOK    and without a last look at the abort word
 *   HOST_SEQUENCE   the number comes from the host, and is the same in each replay
 */

#ifndef W
#define W 2
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef STREAMS
#define STREAMS 1
#endif
#ifndef LIMIT
#define LIMIT 1
#endif
#ifndef SEQUENCE_BITS
#define SEQUENCE_BITS 8
#endif
#ifndef MAY_FAIL
#define MAY_FAIL 0
#endif
#ifndef FAILS
#define FAILS 0
#endif
#ifndef HISTORICAL
#define HISTORICAL 0
#endif

/* ---- Programs. */

#ifndef CALL_2
#define CALL_2 CALL_1
#endif
#ifndef CALL_3
#define CALL_3 CALL_1
#endif
#ifndef CALL_4
#define CALL_4 CALL_1
#endif
#ifndef CALL_5
#define CALL_5 CALL_1
#endif
#ifndef ODD_CALLS
#define ODD_CALLS CALLS
#endif
#ifndef ODD_1
#define ODD_1 CALL_1
#endif
#ifndef ODD_2
#define ODD_2 CALL_2
#endif
#ifndef ODD_3
#define ODD_3 CALL_3
#endif

#define ODD(rank) ((rank) == W - 1)
#define MOST_CALLS(rank) (ODD(rank) -> ODD_CALLS : CALLS)
#define EVERYBODYS(n) ((n) == 1 -> CALL_1 : ((n) == 2 -> CALL_2 : ((n) == 3 -> CALL_3 : ((n) == 4 -> CALL_4 : CALL_5))))
#define ODD_ONES(n) ((n) == 1 -> ODD_1 : ((n) == 2 -> ODD_2 : ((n) == 3 -> ODD_3 : EVERYBODYS(n))))
#define CODE(rank, n) (ODD(rank) -> ODD_ONES(n) : EVERYBODYS(n))
#define BLOCKS(code) ((code) / 10 % 10)
#define ALGORITHM(code) ((code) % 10)
#define NUM_BLOCKS(rank, n) ((n) <= MOST_CALLS(rank) -> BLOCKS(CODE(rank, n)) : 0)

/* The n-th calls of two ranks are the same one if their codes are equal. */
#define IDENTITY (2 * n + (code != EVERYBODYS(n)))
#define MESSAGE(phase) (2 * identity + (phase))

/* call.h, fingerprint(): equal if and only if number and code of the calls are equal. */
#ifdef NO_FINGERPRINT
#define FINGERPRINT 0
#elif defined(REPLAY)
#define FINGERPRINT code
#else
#define FINGERPRINT identity
#endif
#ifdef REPLAY
#define ID 1
#else
#define ID n
#endif
