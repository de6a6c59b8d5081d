/* The stages' mailbox: one direction of a ring, two blocks at each end, stores that arrive in any order. Every interleaving.
 *
 * Settings: P places, M messages. SENDER_MAY_GIVE_UP, RECEIVER_MAY_GIVE_UP: its waits may end at any moment, and it fails.
 * Broken on purpose: NO_CREDIT, CREDIT_EARLY, CREDIT_FIRST, NO_FENCE, FLAG_FIRST, FIRST_BLOCK, ONE_PLACE, NOT_TOLD.
 */
#ifndef P
#define P 2
#endif
#ifndef M
#define M 5
#endif
#ifdef ONE_PLACE
#define SENDERS_PLACE(k) 0
#else
#define SENDERS_PLACE(k) ((k) % P)
#endif
#ifdef CREDIT_EARLY
#define ROOM (P + 1)
#else
#define ROOM P
#endif

/* Memory, and what is on its way there: at most one store a word, since stores to one address keep their order. */
#define DATA(place, block) ((place) * 2 + (block))
#define FLAG(place) (2 * P + (place))
#define CREDIT (3 * P)
#define WORDS 10 /* for three places at most */
byte memory[WORDS];
byte coming[WORDS];
bool is_coming[WORDS];

byte sent, received;         /* numbers of messages that a kernel has ended with */
byte stored, copied;         /* blocks of the present kernel that have arrived */
bool failed[2], abort[2];    /* sender, receiver: its record; its abort word */

inline store(word, value) {
    atomic { !is_coming[word]; coming[word] = value; is_coming[word] = true }
}
inline give_up(who) {
    failed[who] = true;
    abort[who] = true;
#ifndef NOT_TOLD
    abort[1 - who] = true;
#endif
    goto end
}

#define ARRIVES(word) atomic { is_coming[word] -> memory[word] = coming[word]; is_coming[word] = false }
active proctype Link() {
end:
    do
    :: ARRIVES(0) :: ARRIVES(1) :: ARRIVES(2) :: ARRIVES(3) :: ARRIVES(4)
    :: ARRIVES(5) :: ARRIVES(6) :: ARRIVES(7) :: ARRIVES(8) :: ARRIVES(9)
    od
}

proctype Sender(byte block) {
    byte k = 1;
    bool last;
    do
    :: k > M -> break
    :: else ->
        if
        :: atomic { abort[0] -> failed[0] = true }; give_up(0)
#ifdef NO_CREDIT
        :: true
#else
        :: memory[CREDIT] + ROOM >= k
#endif
#ifdef SENDER_MAY_GIVE_UP
        :: memory[CREDIT] + ROOM < k -> give_up(0)
#endif
        fi;
#ifdef FLAG_FIRST
        store(FLAG(SENDERS_PLACE(k)), k);
#endif
        store(DATA(SENDERS_PLACE(k), block), k);
#ifndef NO_FENCE
        !is_coming[DATA(SENDERS_PLACE(k), block)];
#endif
#ifdef FIRST_BLOCK
        atomic { last = (stored == 0); stored++ };
#else
        atomic { stored++; last = (stored == 2) };
#endif
        if
        :: last ->
            store(FLAG(k % P), k);
#ifdef FIRST_BLOCK
            stored == 2 || failed[0];
#endif
            atomic { stored = 0; sent = k }
        :: else
        fi;
        sent >= k || failed[0];  /* the kernel has ended */
        if
        :: failed[0] -> break
        :: else -> k++
        fi
    od;
end:
    skip
}

proctype Receiver(byte block) {
    byte k = 1, value;
    bool last;
    do
    :: k > M -> break
    :: else ->
        if
        :: atomic { abort[1] -> failed[1] = true }; give_up(1)
        :: memory[FLAG(k % P)] == k
        :: memory[FLAG(k % P)] > k -> assert(false)  /* ahead */
#ifdef RECEIVER_MAY_GIVE_UP
        :: memory[FLAG(k % P)] < k -> give_up(1)
#endif
        fi;
#ifdef CREDIT_FIRST
        store(CREDIT, k);
#endif
        value = memory[DATA(k % P, block)];
        assert(value == k);
        atomic { copied++; last = (copied == 2) };
        if
        :: last ->
#ifndef CREDIT_FIRST
            store(CREDIT, k);
#endif
            atomic { copied = 0; received = k }
        :: else
        fi;
        received >= k || failed[1];
        if
        :: failed[1] -> break
        :: else -> k++
        fi
    od;
end:
    skip
}

init {
    atomic {
        run Sender(0); run Sender(1); run Receiver(0); run Receiver(1)
    }
}
