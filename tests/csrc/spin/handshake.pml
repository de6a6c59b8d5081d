/* The handshake of csrc/quick_reduce, and what it must not be, for exhaustive search by spin.
 *
 * What is modelled, step by step as in handshake.h, one_shot.h and two_shot.h:
 *   - a rank's call is a kernel of BLOCKS blocks, one a slot; all blocks of all ranks run concurrently, and a rank's next
 *     call starts when all blocks of the last one have ended (a loop over tiles is a sequence of calls of one block);
 *   - a block claims its slot, sends, publishes flag by flag in any order, awaits flag by flag in any order, and reads;
 *   - a failure raises abort words one by one; every later call of the rank fails at begin.
 * A message is one byte that says whose it is (call, phase): reading another one is a wrong sum. The order of memory
 * operations is that of the program (sequential consistency): ThreadSanitizer and Relacy look at weaker ones.
 * No step repeats, so the graph of states has no cycle: without an invalid end state, every rank always ends.
 *
 * A wait's limit is modelled as `timeout`, enabled only when nothing else in the whole system can move: a run without
 * faults that ever takes it would hang without it. With LIMIT=2 a wait may also give up at any moment.
 *
 * What there is to set stands in settings.pml; the runs and their verdicts in tests/csrc/test_spin.py.
 */

#include "settings.pml"

/* ---- Exchange memory: layout.h. FIRST and SECOND are the phases of a message. */

#define FIRST 0
#define SECOND 1

#if HISTORICAL
#define PLACE(phase) ((phase) == FIRST -> slot : BLOCKS(code) + slot)
#define NUM_PLACES (2 * SLOTS)
#else
#ifdef NO_PARITY
#define FIRST_PLACE 0
#else
#define FIRST_PLACE (sequence & 1)
#endif
#ifdef SHARED_PHASES
#define SECOND_PLACE FIRST_PLACE
#else
#define SECOND_PLACE 2
#endif
#define PLACE(phase) (slot * 3 + ((phase) == FIRST -> FIRST_PLACE : SECOND_PLACE))
#define NUM_PLACES (3 * SLOTS)
#endif

typedef Place {
    byte sequence;    /* the flag: both halves are written and read as one */
    byte fingerprint;
    byte message;
};
typedef Region {
    Place place[NUM_PLACES * W];
    byte input[SLOTS];  /* registered: what peers read straight from this rank's tensor */
    bool abort
};
Region region[W];

#define AT(reader, phase, source) region[reader].place[PLACE(phase) * W + (source)]

/* ---- A rank's own memory. */

typedef Slot {
    byte sequence;
    byte holder
};
Slot slots[W * SLOTS];
#define STATE slots[rank * SLOTS + slot]

/* Of each stream of a rank: the call that runs, and how many of its blocks have not ended. */
typedef Stream {
    byte call;
    byte left
};
Stream streams[W * STREAMS];
#define STREAM streams[rank * STREAMS + stream]

bool failed[W];
bool dead[W];

/* ---- Flags: Handshake::judge(). */

#define MASK ((1 << SEQUENCE_BITS) - 1)
#define LEAD(flag) ((flag.sequence - sequence) & MASK)
#define AHEAD(lead) ((lead) > 0 && (lead) < (1 << (SEQUENCE_BITS - 1)))

#if HISTORICAL == 2
#define ACCEPTED(flag) (flag.sequence >= sequence)
#else
#define ACCEPTED(flag) (flag.sequence == sequence && flag.fingerprint == FINGERPRINT)
#endif
#if HISTORICAL
#define REFUSED(flag) false
#else
#define REFUSED(flag) (AHEAD(LEAD(flag)) || (LEAD(flag) == 0 && flag.fingerprint != FINGERPRINT))
#endif

#if LIMIT == 0 || HISTORICAL
#define GIVES_UP false
#elif LIMIT == 1
#define GIVES_UP timeout
#else
#define GIVES_UP true
#endif

/* ---- One block's steps. Steps are merged where that hides nothing: messages steer no step, so of a store only the
 * earliest moment matters to those who still read what lies there, and of a read only the latest. */

#if STREAMS == 1
#define TOGETHER atomic  /* a slot's state is then touched by one block only */
#else
#define TOGETHER
#endif

#define PEER(i) ((rank + (i)) % W)
#if W == 2
#define EVERY(test) (test(1))
#define ANY(test) (test(1))
#else
#define EVERY(test) (test(1) && test(2))
#define ANY(test) (test(1) || test(2))
#endif

inline store_messages(phase) {
    d_step {
        AT(PEER(1), phase, rank).message = MESSAGE(phase);
#if W > 2
        AT(PEER(2), phase, rank).message = MESSAGE(phase)
#endif
    }
}

#ifdef FLAG_FIRST
#define STORE_BEFORE_FLAG(phase) skip
#define STORE_AFTER_FLAG(phase) store_messages(phase)
#else
#define STORE_BEFORE_FLAG(phase) store_messages(phase)
#define STORE_AFTER_FLAG(phase) skip
#endif

/* `todo` has a bit for each peer: 1 is rank + 1, 2 is rank + 2. */
inline store_flag(i, phase) {
    d_step {
        todo & i ->
        AT(PEER(i), phase, rank).sequence = sequence;
        AT(PEER(i), phase, rank).fingerprint = FINGERPRINT;
        todo = todo - i
    }
}

/* Flag by flag, in any order. */
inline publish(phase) {
    todo = (1 << (W - 1)) - 1;
    do
    :: store_flag(1, phase)
#if W > 2
    :: store_flag(2, phase)
#endif
    :: todo == 0 -> break
    od
}

/* All flags at once, although each is polled by itself: an accepted flag cannot change before the block goes on, or a
 * block that still waits for another peer would see it refused, in some run. */
inline await(phase) {
#define ACCEPTED_FROM(i) ACCEPTED(AT(rank, phase, PEER(i)))
#define REFUSED_FROM(i) REFUSED(AT(rank, phase, PEER(i)))
    if
    :: EVERY(ACCEPTED_FROM)
    :: ANY(REFUSED_FROM) -> ok = false
    :: region[rank].abort && !EVERY(ACCEPTED_FROM) -> ok = false
    :: GIVES_UP -> ok = false
    fi
}

/* THE SUM IS RIGHT: what is read is what each peer sent for this call. */
inline read_messages(phase) {
    d_step {
        assert(AT(rank, phase, PEER(1)).message == MESSAGE(phase));
#if W > 2
        assert(AT(rank, phase, PEER(2)).message == MESSAGE(phase))
#endif
    }
}

inline one_shot() {
    publish(FIRST);
    STORE_AFTER_FLAG(FIRST);
    await(FIRST)
}

/* The last packet of phase 1 is read after the first one of phase 2 was stored. */
inline two_shot() {
    publish(FIRST);
    STORE_AFTER_FLAG(FIRST);
    atomic {
        await(FIRST);
        if
        :: ok -> STORE_BEFORE_FLAG(SECOND)
        :: !ok
        fi
    };
    if
    :: ok ->
        read_messages(FIRST);
        publish(SECOND);
        STORE_AFTER_FLAG(SECOND);
        await(SECOND)
    :: !ok
    fi
}

/* Start flag: my input is complete. End flag: I have read yours. A peer that gives up does not wait for the end and uses
 * its input again: but it raises abort words first, so look at them after reading (Handshake::await_unaborted). */
inline registered() {
    publish(FIRST);
    await(FIRST);
    if
    :: ok ->
        read_inputs();
#ifndef NO_END_FLAG
        publish(SECOND);
#ifndef NO_LAST_LOOK
        ok = !region[rank].abort;
#endif
        if
        :: ok -> await(SECOND)
        :: !ok
        fi
#endif
    :: !ok
    fi
}

/* Whether they were right is judged when the call has succeeded. */
inline read_inputs() {
    d_step {
        right = region[PEER(1)].input[slot] == MESSAGE(FIRST);
#if W > 2
        right = right && region[PEER(2)].input[slot] == MESSAGE(FIRST)
#endif
    }
}

/* Uses of the slot so far. Historical: a colour that the host hands to the kernel. */
inline load_sequence() {
#if HISTORICAL
    sequence = n
#elif defined(HOST_SEQUENCE)
    sequence = ID
#else
    sequence = (STATE.sequence + 1) & MASK
#endif
}

/* Handshake::begin(). `todo` holds the former ticket for a moment. */
inline begin() {
#ifdef SEQUENCE_FIRST
    load_sequence();
#endif
    d_step {
        todo = STATE.holder;
        STATE.holder = ID
    };
#ifdef NO_TICKET
    todo = 0;
#endif
    d_step {
        ok = !region[rank].abort && todo == 0;
        todo = 0
    };
#ifndef SEQUENCE_FIRST
    load_sequence()
#endif
}

inline end() {
    STATE.sequence = sequence;
    STATE.holder = 0
}

/* Handshake::fail(): abort words, one by one. */
inline fail() {
    assert(MAY_FAIL);
    failed[rank] = true;
    region[0].abort = true;
    region[1].abort = true;
#if W > 2
    region[2].abort = true;
#endif
    ok = true
}

inline use_slot() {
    TOGETHER {
        region[rank].input[slot] = MESSAGE(FIRST);  /* by whatever ran before on this stream */
        begin();
        if
        :: ok && ALGORITHM(code) != 3 -> STORE_BEFORE_FLAG(FIRST)
        :: ok && ALGORITHM(code) == 3
        :: !ok
        fi
    };
    if
    :: ok && ALGORITHM(code) == 1 -> one_shot()
    :: ok && ALGORITHM(code) == 2 -> two_shot()
    :: ok && ALGORITHM(code) == 3 -> registered()
    :: !ok
    fi;
    if
    :: ok ->
        TOGETHER {
            if
            :: ALGORITHM(code) == 1 -> read_messages(FIRST)
            :: ALGORITHM(code) == 2 -> read_messages(SECOND)
            :: ALGORITHM(code) == 3 -> assert(right)
            fi;
            end();
            leave_kernel()
        }
    :: !ok ->
        fail();
        leave_kernel()
    fi
}

/* The last block of a call to end lets the stream's next call start. */
inline leave_kernel() {
    d_step {
        STREAM.left--;
        if
        :: STREAM.left == 0 ->
            STREAM.call = STREAM.call + rank_streams;
            STREAM.left = NUM_BLOCKS(rank, STREAM.call)
        :: else
        fi;
        code = 0; identity = 0; sequence = 0  /* or states that are the same would differ */
    }
}

/* Slot `slot` in each call of a stream. */
proctype block(byte rank, slot, stream, rank_streams) {
    byte n = stream + 1;
    byte code, identity, sequence, todo;
    bool ok = true, right = true;
    {
        do
        :: n > MOST_CALLS(rank) -> break
        :: n <= MOST_CALLS(rank) && slot >= BLOCKS(CODE(rank, n)) -> n = n + rank_streams
        :: n <= MOST_CALLS(rank) && slot < BLOCKS(CODE(rank, n)) && STREAM.call == n ->
            code = CODE(rank, n);
            identity = IDENTITY;
            use_slot();
            n = n + rank_streams
        od
    }
#ifdef DEAD
    unless { dead[rank] }
#endif
}

proctype killer() {
    dead[W - 1] = true
}

init {
    byte rank, slot, stream, rank_streams;
    atomic {
        for (rank : 0 .. W - 1) {
            rank_streams = (ODD(rank) -> STREAMS : 1);
            for (stream : 0 .. rank_streams - 1) {
                STREAM.call = stream + 1;
                STREAM.left = NUM_BLOCKS(rank, stream + 1);
                for (slot : 0 .. SLOTS - 1) {
                    run block(rank, slot, stream, rank_streams)
                }
            }
        };
        rank = 0; slot = 0; stream = 0; rank_streams = 0;
#ifdef DEAD
        run killer()
#endif
    };
    _nr_pr == 1 ->
    d_step {
        for (rank : 0 .. W - 1) {
            assert(failed[rank] || !(FAILS & (1 << rank)))
        }
    }
}
