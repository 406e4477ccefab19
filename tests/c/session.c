/* Sessions: feeding, going back, forking, what happens past the context. The oracle of each state
 * is a new session that is fed with the same tokens at once. */
#include "check.h"

static const char *const kinds[] = {"model", "learned"};

static void refusing(const teeny_model *model) {
    static const uint32_t tokens[] = {1, 2, VOCAB, 3};
    static const uint32_t good[] = {1, 2, 3};
    teeny_session *const untouched = made_up(7);
    teeny_session *s = untouched;
    teeny_session_options o = session_options();
    const float *numbers = (const float *)made_up(8);
    size_t len = 77;
    uint32_t token = 77;
    teeny_sampler *sampler = NULL;
    state before;
    char unaligned[64] = {0};

    EXPECT(teeny_session_new(model, NULL, NULL), TEENY_NULL_POINTER, "out: found NULL");
    FAILS(teeny_session_new(model, NULL, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_new(model, (void *)(unaligned + 1), &s), TEENY_INVALID_ARGUMENT);
    o.size = 0;
    EXPECT(teeny_session_new(model, &o, &s), TEENY_INVALID_ARGUMENT, "options.size: found 0");
    o.size = SIZE_MAX;
    EXPECT(teeny_session_new(model, &o, &s), TEENY_INVALID_ARGUMENT, "options.size");
    o = session_options();
    o.overflow = 3;
    EXPECT(teeny_session_new(model, &o, &s), TEENY_INVALID_ARGUMENT, "overflow: found 3");
    o.overflow = -1;
    EXPECT(teeny_session_new(model, &o, &s), TEENY_INVALID_ARGUMENT, "overflow: found -1");
    o = session_options();
    o.reserved = 1;
    EXPECT(teeny_session_new(model, &o, &s), TEENY_INVALID_ARGUMENT, "reserved: found 1");
    CHECK(s == untouched);
    EXPECT(teeny_session_options_init(NULL, sizeof o), TEENY_NULL_POINTER, "options");
    EXPECT(teeny_session_options_init(&o, sizeof o - 1), TEENY_INVALID_ARGUMENT, "size");
    o = session_options();
    CHECK(o.size == sizeof o && o.reserve == 0 && o.overflow == TEENY_OVERFLOW_SLIDE);

    s = new_session(model);
    MUST(teeny_sampler_new_greedy(&sampler));
    CHECK(teeny_session_position(s) == 0);
    FAILS(teeny_session_logits(s, &numbers, &len), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_hidden(s, &numbers, &len), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_sample(s, sampler, &token), TEENY_INVALID_ARGUMENT);
    CHECK(numbers == made_up(8) && len == 77 && token == 77);
    OK(teeny_session_truncate(s, 0));
    FAILS(teeny_session_truncate(s, 1), TEENY_INVALID_ARGUMENT);

    EXPECT(teeny_session_feed(s, NULL, 3), TEENY_NULL_POINTER, "tokens: found NULL");
    FAILS(teeny_session_feed(s, tokens, 0), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_feed(s, tokens, 4), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_feed(s, tokens, SIZE_MAX), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_feed(s, made_up((uintptr_t)tokens + 1), 2), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_decode(s, VOCAB), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_decode(s, UINT32_MAX), TEENY_INVALID_ARGUMENT);
    CHECK(teeny_session_position(s) == 0);
    OK(teeny_session_feed(s, good, 3));
    before = state_of(s);
    FAILS(teeny_session_feed(s, tokens, 4), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_decode(s, VOCAB), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_truncate(s, 4), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_truncate(s, SIZE_MAX), TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_session_logits(s, NULL, &len), TEENY_NULL_POINTER, "logits: found NULL");
    EXPECT(teeny_session_logits(s, &numbers, NULL), TEENY_NULL_POINTER, "len: found NULL");
    EXPECT(teeny_session_hidden(s, NULL, &len), TEENY_NULL_POINTER, "hidden: found NULL");
    EXPECT(teeny_session_hidden(s, &numbers, NULL), TEENY_NULL_POINTER, "len: found NULL");
    FAILS(teeny_session_logits(s, (void *)(unaligned + 1), &len), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_logits(s, &numbers, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_session_sample(s, sampler, NULL), TEENY_NULL_POINTER, "token: found NULL");
    FAILS(teeny_session_sample(s, sampler, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_session_fork(s, NULL), TEENY_NULL_POINTER, "out: found NULL");
    FAILS(teeny_session_fork(s, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    CHECK(numbers == made_up(8) && len == 77);
    {
        state after = state_of(s);
        CHECK(same_state(&before, &after));
    }
    teeny_sampler_free(sampler);
    teeny_session_free(s);
}

/* Pieces of any length, and one by one, and with memory reserved. */
static void pieces(const teeny_model *model, size_t n) {
    static const size_t lengths[] = {1, 2, 7, 23, 24, 25, 63, 64, 65, 200};
    uint32_t *tokens = malloc(n * sizeof *tokens);
    teeny_session_options o = session_options();
    teeny_session *s = new_session(model);
    size_t i;
    size_t at;
    if (tokens == NULL) {
        exit(1);
    }
    random_tokens(tokens, n, 11);
    for (at = 0; at < n; at++) {
        OK(teeny_session_decode(s, tokens[at]));
    }
    CHECK(teeny_session_position(s) == n);
    CHECK(IS_FED(s, model, tokens, n));
    for (i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        teeny_session *piecewise = NULL;
        o.reserve = i % 2 ? n : SIZE_MAX;
        MUST(teeny_session_new(model, &o, &piecewise));
        for (at = 0; at < n;) {
            const size_t rest = n - at;
            const size_t step = rest < lengths[i] ? rest : lengths[i];
            OK(teeny_session_feed(piecewise, tokens + at, step));
            at += step;
        }
        CHECK(IS_FED(piecewise, model, tokens, n));
        teeny_session_free(piecewise);
    }
    OK(teeny_session_reset(s));
    CHECK(teeny_session_position(s) == 0);
    OK(teeny_session_feed(s, tokens, n / 2));
    CHECK(IS_FED(s, model, tokens, n / 2));
    teeny_session_free(s);
    free(tokens);
}

/* Each position is restored exactly, or refused and nothing has changed. */
static void going_back(const teeny_model *model, size_t n) {
    uint32_t tokens[600];
    size_t position;
    size_t restored = 0;
    const size_t step = quick ? 61 : n > 100 ? 7 : 1;
    random_tokens(tokens, n, 12);
    for (position = n; position > 0; position -= position < step ? position : step) {
        teeny_session *s = fed(model, tokens, n);
        teeny_status status = teeny_session_truncate(s, position);
        if (status == TEENY_OK) {
            restored++;
            CHECK(IS_FED(s, model, tokens, position));
            /* The same continuation, and another one. */
            OK(teeny_session_decode(s, tokens[3]));
            if (teeny_session_truncate(s, position) != TEENY_OK) {
                /* That token has pushed out what the others need. */
                CHECK(strstr(teeny_last_error(), "position: found") != NULL && n >= CONTEXT);
                teeny_session_free(s);
                continue;
            }
            CHECK(IS_FED(s, model, tokens, position));
            OK(teeny_session_feed(s, tokens + position - 1, 1));
            if (teeny_session_truncate(s, position) == TEENY_OK && position < n) {
                OK(teeny_session_feed(s, tokens + position, n - position));
                CHECK(IS_FED(s, model, tokens, n));
            }
        } else {
            CHECK(status == TEENY_INVALID_ARGUMENT && n > CONTEXT);
            CHECK(strstr(teeny_last_error(), "position: found") != NULL);
            CHECK(IS_FED(s, model, tokens, n));
        }
        teeny_session_free(s);
    }
    /* All of them, while nothing has left the context. */
    CHECK(restored > 0 && (n > CONTEXT || quick || restored == n));
    if (n > 10 * CONTEXT) {
        teeny_session *s = fed(model, tokens, n);
        FAILS(teeny_session_truncate(s, 1), TEENY_INVALID_ARGUMENT);
        FAILS(teeny_session_truncate(s, n - 10 * CONTEXT), TEENY_INVALID_ARGUMENT);
        CHECK(IS_FED(s, model, tokens, n));
        OK(teeny_session_truncate(s, 0));
        OK(teeny_session_feed(s, tokens, 9));
        CHECK(IS_FED(s, model, tokens, 9));
        teeny_session_free(s);
    }
}

static teeny_session_stats stats_of(const teeny_session *session) {
    teeny_session_stats stats;
    memset(&stats, 7, sizeof stats);
    OK(teeny_session_get_stats(session, &stats, sizeof stats));
    CHECK(stats.size == sizeof stats && stats.reserved == 0);
    return stats;
}

static void forking(const teeny_model *model, size_t prompt) {
    enum { CHILDREN = 5, MORE = 40 };
    uint32_t tokens[CHILDREN][600];
    teeny_session *parent;
    teeny_session *children[CHILDREN] = {NULL};
    state before;
    state after;
    size_t kv;
    int i;
    for (i = 0; i < CHILDREN; i++) {
        random_tokens(tokens[i], prompt, 13);
        random_tokens(tokens[i] + prompt, MORE, 100 + (uint64_t)i);
    }
    parent = fed(model, tokens[0], prompt);
    before = state_of(parent);
    kv = stats_of(parent).kv_bytes;
    CHECK(kv > 0 && stats_of(parent).kv_shared_bytes == 0);
    for (i = 0; i < CHILDREN; i++) {
        MUST(teeny_session_fork(parent, &children[i]));
        after = state_of(children[i]);
        CHECK(same_state(&before, &after));
        CHECK(stats_of(children[i]).kv_bytes == kv);
        CHECK(stats_of(children[i]).kv_shared_bytes == kv);
    }
    CHECK(stats_of(parent).kv_shared_bytes == kv);
    /* Token by token in turn, so that they would disturb each other. */
    for (kv = 0; kv < MORE; kv++) {
        for (i = 0; i < CHILDREN; i++) {
            OK(teeny_session_decode(children[i], tokens[i][prompt + kv]));
        }
    }
    after = state_of(parent);
    CHECK(same_state(&before, &after));
    for (i = 0; i < CHILDREN; i++) {
        CHECK(IS_FED(children[i], model, tokens[i], prompt + MORE));
    }
    /* The parent may go first, or on. */
    OK(teeny_session_feed(parent, tokens[0] + prompt, MORE));
    CHECK(IS_FED(parent, model, tokens[0], prompt + MORE));
    teeny_session_free(parent);
    for (i = 0; i < CHILDREN; i++) {
        teeny_session *grandchild = NULL;
        MUST(teeny_session_fork(children[i], &grandchild));
        teeny_session_free(children[i]);
        CHECK(IS_FED(grandchild, model, tokens[i], prompt + MORE));
        /* The last one has nobody to share with. */
        CHECK(i < CHILDREN - 1 || stats_of(grandchild).kv_shared_bytes == 0);
        teeny_session_free(grandchild);
    }
    /* Of an empty session too. */
    parent = new_session(model);
    MUST(teeny_session_fork(parent, &children[0]));
    OK(teeny_session_feed(children[0], tokens[0], 5));
    CHECK(IS_FED(children[0], model, tokens[0], 5) && teeny_session_position(parent) == 0);
    teeny_session_free(children[0]);
    teeny_session_free(parent);
}

static void overflowing(const teeny_model *model) {
    static const int32_t policies[] = {TEENY_OVERFLOW_STOP, TEENY_OVERFLOW_ERROR};
    uint32_t tokens[CONTEXT + 2];
    int i;
    random_tokens(tokens, CONTEXT + 2, 14);
    for (i = 0; i < 2; i++) {
        teeny_session *s = new_session_with(model, policies[i]);
        EXPECT(teeny_session_feed(s, tokens, CONTEXT + 1), TEENY_CONTEXT_FULL, "max_seq_len = 24");
        CHECK(teeny_session_position(s) == 0);
        OK(teeny_session_feed(s, tokens, CONTEXT - 1));
        FAILS(teeny_session_feed(s, tokens + CONTEXT - 1, 2), TEENY_CONTEXT_FULL);
        OK(teeny_session_decode(s, tokens[CONTEXT - 1]));
        FAILS(teeny_session_decode(s, tokens[CONTEXT]), TEENY_CONTEXT_FULL);
        CHECK(IS_FED(s, model, tokens, CONTEXT));
        OK(teeny_session_truncate(s, CONTEXT - 2));
        OK(teeny_session_feed(s, tokens + CONTEXT - 2, 2));
        CHECK(IS_FED(s, model, tokens, CONTEXT));
        teeny_session_free(s);
    }
}

/* The stats of a later header. */
typedef struct newer {
    teeny_session_stats stats;
    size_t later;
} newer;

static void measuring(const teeny_model *model) {
    uint32_t tokens[100];
    teeny_session *s = new_session(model);
    teeny_session_stats stats;
    teeny_session_stats untouched;
    newer grown;
    char unaligned[sizeof stats + 16] = {0};
    random_tokens(tokens, 100, 15);
    memset(&stats, 7, sizeof stats);
    untouched = stats;
    EXPECT(teeny_session_get_stats(s, NULL, sizeof stats), TEENY_NULL_POINTER, "stats: found NULL");
    EXPECT(teeny_session_get_stats(s, &stats, 0), TEENY_INVALID_ARGUMENT, "size: found 0");
    EXPECT(teeny_session_get_stats(s, &stats, sizeof stats - 1), TEENY_INVALID_ARGUMENT, "size");
    EXPECT(teeny_session_get_stats(s, &stats, SIZE_MAX), TEENY_INVALID_ARGUMENT, "size");
    FAILS(teeny_session_get_stats(s, (void *)(unaligned + 1), sizeof stats),
          TEENY_INVALID_ARGUMENT);
    CHECK(memcmp(&stats, &untouched, sizeof stats) == 0);
    memset(&grown, 7, sizeof grown);
    OK(teeny_session_get_stats(s, &grown.stats, sizeof grown));
    CHECK(grown.stats.size == sizeof grown && grown.later == 0);

    stats = stats_of(s);
    CHECK(stats.prefill_tokens == 0 && stats.prefill_ns == 0 && stats.decode_tokens == 0);
    CHECK(stats.decode_ns == 0 && stats.first_token_ns == 0 && stats.kv_shared_bytes == 0);
    CHECK(stats.end_reason == TEENY_END_NONE);
    OK(teeny_session_feed(s, tokens, 60));
    OK(teeny_session_feed(s, tokens, 1));
    OK(teeny_session_decode(s, 1));
    OK(teeny_session_decode(s, 2));
    FAILS(teeny_session_decode(s, VOCAB), TEENY_INVALID_ARGUMENT);
    stats = stats_of(s);
    CHECK(stats.prefill_tokens == 61 && stats.prefill_ns > 0);
    CHECK(stats.decode_tokens == 2 && stats.decode_ns > 0);
    /* Two layers of keys and values of a width of 30, in whole pages. */
    CHECK(stats.kv_bytes >= 2 * 2 * N_EMBD * CONTEXT * sizeof(float));
    CHECK(stats.first_token_ns == 0);
    teeny_session_free(s);
}

/* What was borrowed stays where it is and follows the session. */
static void borrowing(const teeny_model *model) {
    static const uint32_t tokens[] = {4, 5, 6};
    teeny_session *s = fed(model, tokens, 3);
    const float *logits = NULL;
    const float *again = NULL;
    const float *hidden = NULL;
    size_t len = 0;
    size_t i;
    float copy[VOCAB];
    OK(teeny_session_logits(s, &logits, &len));
    CHECK(len == VOCAB);
    OK(teeny_session_hidden(s, &hidden, &len));
    CHECK(len == N_EMBD && len == teeny_model_n_embd(model));
    for (i = 0; i < len; i++) {
        CHECK(isfinite(hidden[i]));
    }
    memcpy(copy, logits, sizeof copy);
    CHECK(!same_floats(logits, hidden, N_EMBD));
    OK(teeny_session_decode(s, 7));
    CHECK(!same_floats(logits, copy, VOCAB));
    OK(teeny_session_truncate(s, 3));
    CHECK(same_floats(logits, copy, VOCAB));
    OK(teeny_session_logits(s, &again, &len));
    CHECK(again == logits);
    teeny_session_free(s);
}

void session_group(void) {
    size_t i;
    for (i = 0; i < 2; i++) {
        teeny_model *model = load(kinds[i]);
        refusing(model);
        pieces(model, CONTEXT);
        pieces(model, quick ? 70 : 500);
        going_back(model, CONTEXT);
        going_back(model, 60);
        going_back(model, quick ? 250 : 500);
        forking(model, 10);
        if (!quick) {
            forking(model, 200);
        }
        overflowing(model);
        measuring(model);
        borrowing(model);
        teeny_model_free(model);
    }
}
