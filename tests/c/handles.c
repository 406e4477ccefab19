/* Handles: freed, of another type, made up. Every function refuses each of them, changes nothing,
 * and the order of freeing is free. */
#include "check.h"

enum { FILL = 0x5A };

/* Places for results, which no refused call may touch. */
static union outputs {
    unsigned char bytes[256];
    teeny_model *model;
    teeny_session *session;
    teeny_sampler *sampler;
    teeny_stream *stream;
    const float *numbers;
    uint32_t tokens[8];
    float log_probs[8];
    size_t len;
    char text[64];
    teeny_text piece;
    teeny_session_stats stats;
    teeny_score score;
    int32_t reason;
} out, out2;

static teeny_session *a_session; /* Sound, for functions that take more than one handle. */
static teeny_sampler *a_sampler;
static const char *what;

static void fill(void) {
    memset(&out, FILL, sizeof out);
    memset(&out2, FILL, sizeof out2);
}

static int is_filled(const union outputs *o) {
    size_t i;
    for (i = 0; i < sizeof o->bytes; i++) {
        if (o->bytes[i] != FILL) {
            return 0;
        }
    }
    return 1;
}

static void refused(teeny_status found, teeny_status expected, const char *name, const char *call,
                    int line) {
    const int untouched = is_filled(&out) && is_filled(&out2);
    if (found != expected || !untouched || strstr(teeny_last_error(), name) == NULL) {
        fprintf(stderr, "handles.c:%d: %s: %s\n  %s, expected %s; outputs %s\n  message: %s\n",
                line, what, call, teeny_status_name(found), teeny_status_name(expected),
                untouched ? "untouched" : "changed", teeny_last_error());
        check(0, what, __FILE__, line);
        fill();
    }
}

static void getter(size_t value, const char *name, int line) {
    if (value != 0 || strstr(teeny_last_error(), name) == NULL) {
        fprintf(stderr, "handles.c:%d: %s: getter gives %lu, message: %s\n", line, what,
                (unsigned long)value, teeny_last_error());
        check(0, what, __FILE__, line);
    }
}

static int32_t never(void *user_data, const char *text, size_t len) {
    (void)user_data;
    (void)text;
    (void)len;
    CHECK(!"called");
    return 1;
}

#define REFUSED(call) refused(call, expected, name, #call, __LINE__)
#define GETTER(call) getter(call, name, __LINE__)

static const uint32_t some[] = {1, 2};

static void model_calls(const teeny_model *m, teeny_status expected) {
    const char *name = "model: found";
    fill();
    REFUSED(teeny_model_metadata_at(m, 0, &out.piece, &out2.piece));
    REFUSED(teeny_model_metadata_get(m, "format", 6, &out.piece));
    REFUSED(teeny_model_encode(m, "AB", 2, out.tokens, 8, &out2.len));
    REFUSED(teeny_model_decode(m, some, 2, out.text, 8, &out2.len));
    REFUSED(teeny_model_token_bytes(m, 0, &out.piece));
    REFUSED(teeny_session_new(m, NULL, &out.session));
    REFUSED(teeny_generate(m, "A", 1, NULL, NULL, never, NULL));
    REFUSED(teeny_score_text(m, "AB", 2, &out.score, sizeof out.score));
    GETTER(teeny_model_vocab_size(m));
    GETTER(teeny_model_max_seq_len(m));
    GETTER(teeny_model_n_embd(m));
    GETTER(teeny_model_n_params(m));
    GETTER(teeny_model_memory_used(m));
    GETTER(teeny_model_metadata_count(m));
    teeny_model_free((teeny_model *)(uintptr_t)m);
}

static void session_calls(teeny_session *s, teeny_status expected) {
    const char *name = "session: found";
    fill();
    REFUSED(teeny_session_feed(s, some, 2));
    REFUSED(teeny_session_decode(s, 1));
    REFUSED(teeny_session_logits(s, &out.numbers, &out2.len));
    REFUSED(teeny_session_hidden(s, &out.numbers, &out2.len));
    REFUSED(teeny_session_sample(s, a_sampler, out.tokens));
    REFUSED(teeny_session_truncate(s, 0));
    REFUSED(teeny_session_fork(s, &out.session));
    REFUSED(teeny_session_reset(s));
    REFUSED(teeny_session_save(s, out.bytes, 256, &out2.len));
    REFUSED(teeny_session_save_file(s, path_of("never")));
    REFUSED(teeny_session_restore(s, "AB", 2));
    REFUSED(teeny_session_restore_file(s, path_of("foreign")));
    REFUSED(teeny_session_cancel(s, 1));
    REFUSED(teeny_session_score(s, some, 2, out.log_probs, 1, out2.tokens, out.log_probs));
    REFUSED(teeny_session_get_stats(s, &out.stats, sizeof out.stats));
    REFUSED(teeny_session_generate(s, a_sampler, "A", 1, NULL, never, NULL));
    REFUSED(teeny_stream_new(s, a_sampler, "A", 1, NULL, &out.stream));
    GETTER(teeny_session_position(s));
    teeny_session_free(s);
}

/* In generate and stream, NULL stands for a sampler of the defaults. */
static void sampler_calls(teeny_sampler *s, teeny_status expected) {
    static const float logits[] = {1, 2};
    static const teeny_logit_bias bias = {0, 1};
    const char *name = "sampler: found";
    fill();
    REFUSED(teeny_sampler_add_logit_bias(s, &bias, 1));
    REFUSED(teeny_sampler_add_penalties(s, 1, 1, 0, 0));
    REFUSED(teeny_sampler_add_top_k(s, 1));
    REFUSED(teeny_sampler_add_top_p(s, 1));
    REFUSED(teeny_sampler_add_min_p(s, 0));
    REFUSED(teeny_sampler_add_temperature(s, 1));
    REFUSED(teeny_sampler_describe(s, out.text, 64, &out2.len));
    REFUSED(teeny_sampler_clone(s, &out.sampler));
    REFUSED(teeny_sampler_sample(s, logits, 2, out.tokens));
    REFUSED(teeny_sampler_accept(s, 1));
    REFUSED(teeny_sampler_reset(s));
    REFUSED(teeny_session_sample(a_session, s, out.tokens));
    if (s != NULL) {
        REFUSED(teeny_session_generate(a_session, s, "A", 1, NULL, never, NULL));
        REFUSED(teeny_stream_new(a_session, s, "A", 1, NULL, &out.stream));
    }
    teeny_sampler_free(s);
}

static void stream_calls(teeny_stream *s, teeny_status expected) {
    const char *name = "stream: found";
    fill();
    REFUSED(teeny_stream_next(s, &out.piece));
    REFUSED(teeny_stream_end_reason(s, &out.reason));
    teeny_stream_free(s);
}

static void every_call(const char *of, void *handle, int but, teeny_status expected) {
    const size_t count = teeny_object_count();
    what = of;
    if (but != 1) {
        model_calls(handle, expected);
    }
    if (but != 2) {
        session_calls(handle, expected);
    }
    if (but != 3) {
        sampler_calls(handle, expected);
    }
    if (but != 4) {
        stream_calls(handle, expected);
    }
    CHECK(teeny_object_count() == count);
}

/* Whether one bit of a handle makes another one that is sound. */
static int is_one_of(uintptr_t bits, void *const *handles, int n) {
    int i;
    for (i = 0; i < n; i++) {
        if (bits == (uintptr_t)handles[i]) {
            return 1;
        }
    }
    return 0;
}

static void invalid(void) {
    void *handles[9] = {NULL};
    teeny_model *model = load("model");
    teeny_model *freed_model;
    teeny_session *session = new_session(model);
    teeny_session *freed_session = new_session(model);
    teeny_sampler *sampler = NULL;
    teeny_sampler *freed_sampler = NULL;
    teeny_stream *stream = NULL;
    teeny_stream *freed_stream = NULL;
    uint64_t seed = 51;
    uintptr_t bits;
    int i;
    MUST(teeny_sampler_new(NULL, &sampler));
    MUST(teeny_sampler_new(NULL, &freed_sampler));
    MUST(teeny_stream_new(session, sampler, "A", 1, NULL, &stream));
    MUST(teeny_stream_new(session, sampler, "A", 1, NULL, &freed_stream));
    freed_model = load("model");
    a_session = session;
    a_sampler = sampler;
    OK(teeny_session_feed(session, some, 2));

    every_call("NULL", NULL, 0, TEENY_NULL_POINTER);
    every_call("a model", model, 1, TEENY_INVALID_HANDLE);
    every_call("a session", session, 2, TEENY_INVALID_HANDLE);
    every_call("a sampler", sampler, 3, TEENY_INVALID_HANDLE);
    every_call("a stream", stream, 4, TEENY_INVALID_HANDLE);
    every_call("0x10", made_up(0x10), 0, TEENY_INVALID_HANDLE);
    every_call("1", made_up(1), 0, TEENY_INVALID_HANDLE);
    every_call("all bits", made_up(UINTPTR_MAX), 0, TEENY_INVALID_HANDLE);
    every_call("the highest bit", made_up(~(UINTPTR_MAX >> 1)), 0, TEENY_INVALID_HANDLE);
    every_call("an address", &out, 0, TEENY_INVALID_HANDLE);
    every_call("an odd address", made_up((uintptr_t)&out + 1), 0, TEENY_INVALID_HANDLE);
    /* Next to a handle: any one bit of it wrong. */
    handles[1] = model;
    handles[2] = freed_model;
    handles[3] = session;
    handles[4] = freed_session;
    handles[5] = sampler;
    handles[6] = freed_sampler;
    handles[7] = stream;
    handles[8] = freed_stream;
    for (i = 0; i < (int)(8 * sizeof bits); i++) {
        const uintptr_t bit = (uintptr_t)1 << i;
        int h;
        for (h = 1; h < 9; h += 2) {
            bits = (uintptr_t)handles[h] ^ bit;
            if (!is_one_of(bits, handles, 9)) {
                every_call("a handle but for one bit", made_up(bits), 0, TEENY_INVALID_HANDLE);
            }
        }
    }
    for (i = 0; i < (quick ? 10 : 300); i++) {
        bits = (uintptr_t)random_bits(&seed) << 16 << 16 | random_bits(&seed);
        if (!is_one_of(bits, handles, 9)) {
            every_call("random", made_up(bits), 0, TEENY_INVALID_HANDLE);
        }
    }
    teeny_model_free(freed_model);
    teeny_session_free(freed_session);
    teeny_sampler_free(freed_sampler);
    teeny_stream_free(freed_stream);
    for (i = 0; i < 2; i++) {
        every_call("a freed model", freed_model, 0, TEENY_INVALID_HANDLE);
        every_call("a freed session", freed_session, 0, TEENY_INVALID_HANDLE);
        every_call("a freed sampler", freed_sampler, 0, TEENY_INVALID_HANDLE);
        every_call("a freed stream", freed_stream, 0, TEENY_INVALID_HANDLE);
    }
    /* All of which has done nothing to the others. */
    CHECK(IS_FED(session, model, some, 2));
    teeny_stream_free(stream);
    teeny_sampler_free(sampler);
    teeny_session_free(session);
    teeny_model_free(model);
}

/* A place that is used again has another handle, many times. */
static void taken_again(void) {
    enum { MANY = 3000 };
    static teeny_sampler *old[MANY];
    const float logits[] = {0, 1};
    teeny_sampler *now = NULL;
    uint32_t token = 77;
    int i;
    for (i = 0; i < MANY; i++) {
        MUST(teeny_sampler_new_greedy(&old[i]));
        teeny_sampler_free(old[i]);
    }
    MUST(teeny_sampler_new_greedy(&now));
    for (i = 0; i < MANY; i++) {
        CHECK(old[i] != now);
        FAILS(teeny_sampler_sample(old[i], logits, 2, &token), TEENY_INVALID_HANDLE);
        teeny_sampler_free(old[i]);
    }
    CHECK(token == 77 && teeny_object_count() == 1);
    OK(teeny_sampler_sample(now, logits, 2, &token));
    CHECK(token == 1);
    teeny_sampler_free(now);
}

/* Model, session, sampler and stream in each of 24 orders; what is left works to the last. */
static void orders(void) {
    teeny_model *expected_of = load("model");
    received expected = nothing();
    int order;
    teeny_generate_options o = generate_options();
    o.max_tokens = 8;
    OK(teeny_generate(expected_of, "ABC", 3, NULL, &o, receive, &expected));
    for (order = 0; order < 24; order++) {
        teeny_model *model = load("model");
        teeny_session *session = new_session(model);
        teeny_sampler *sampler = NULL;
        teeny_stream *stream = NULL;
        int left[4] = {0, 1, 2, 3};
        int n = 4;
        int rest = order;
        received got = nothing();
        MUST(teeny_sampler_new(NULL, &sampler));
        MUST(teeny_stream_new(session, sampler, "ABC", 3, &o, &stream));
        for (; n > 0; n--) {
            const int at = rest % n;
            const int chosen = left[at];
            rest /= n;
            memmove(left + at, left + at + 1, (size_t)(n - at - 1) * sizeof left[0]);
            switch (chosen) {
            case 0:
                teeny_model_free(model);
                model = NULL;
                break;
            case 1:
                teeny_session_free(session);
                session = NULL;
                break;
            case 2:
                teeny_sampler_free(sampler);
                sampler = NULL;
                break;
            default:
                teeny_stream_free(stream);
                stream = NULL;
            }
            if (model != NULL) {
                CHECK(teeny_model_vocab_size(model) == VOCAB);
            }
            if (stream != NULL) {
                teeny_text piece = {NULL, 0};
                OK(teeny_stream_next(stream, &piece));
                CHECK(receive(&got, piece.data, piece.len) == 0);
                CHECK(memcmp(got.text, expected.text, got.len) == 0);
            }
            if (session != NULL && stream == NULL) {
                OK(teeny_session_feed(session, some, 2));
                CHECK(teeny_session_position(session) >= 2);
            }
            if (sampler != NULL) {
                teeny_sampler *clone = NULL;
                OK(teeny_sampler_clone(sampler, &clone));
                teeny_sampler_free(clone);
            }
            CHECK(teeny_object_count() == (size_t)n);
        }
    }
    teeny_model_free(expected_of);
}

void handles_group(void) {
    invalid();
    taken_again();
    orders();
}
