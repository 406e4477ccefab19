/* Generating: in one call, in a session, as a stream. The oracle is the loop that a caller would
 * write: sample, token to bytes, decode. */
#include "check.h"

/* `max_tokens` after a prompt, drawn by hand; what a session then holds. */
static received by_hand(const teeny_model *model, const char *prompt, size_t max_tokens,
                        const teeny_sampler_options *options, state *end) {
    uint32_t tokens[64];
    size_t len = 0;
    size_t i;
    received got = nothing();
    teeny_session *session = new_session(model);
    teeny_sampler *sampler = NULL;
    MUST(teeny_sampler_new(options, &sampler));
    OK(teeny_model_encode(model, prompt, strlen(prompt), tokens, 64, &len));
    OK(teeny_session_feed(session, tokens, len));
    for (i = 0; i < len; i++) {
        OK(teeny_sampler_accept(sampler, tokens[i]));
    }
    for (i = 0; i < max_tokens; i++) {
        uint32_t token = VOCAB;
        teeny_text bytes = {NULL, 0};
        OK(teeny_session_sample(session, sampler, &token));
        OK(teeny_model_token_bytes(model, token, &bytes));
        CHECK(receive(&got, bytes.data, bytes.len) == 0);
        OK(teeny_session_decode(session, token));
    }
    if (end != NULL) {
        *end = state_of(session);
    }
    teeny_session_free(session);
    teeny_sampler_free(sampler);
    return got;
}

/* The options of a later header. */
typedef struct newer {
    teeny_generate_options options;
    size_t later;
} newer;

static void initialising(void) {
    teeny_generate_options options;
    teeny_generate_options before;
    newer grown;
    memset(&options, 7, sizeof options);
    before = options;
    EXPECT(teeny_generate_options_init(NULL, sizeof options), TEENY_NULL_POINTER, "options");
    EXPECT(teeny_generate_options_init(&options, 0), TEENY_INVALID_ARGUMENT, "size: found 0");
    EXPECT(teeny_generate_options_init(&options, sizeof options - 1), TEENY_INVALID_ARGUMENT,
           "expected sizeof(teeny_generate_options)");
    EXPECT(teeny_generate_options_init(&options, SIZE_MAX), TEENY_INVALID_ARGUMENT, "size");
    CHECK(memcmp(&options, &before, sizeof options) == 0);
    options = generate_options();
    CHECK(options.size == sizeof options && options.max_tokens == 256 && options.stop == NULL);
    CHECK(options.n_stop == 0 && options.raw_bytes == 0 && options.ignore_end == 0);
    memset(&grown, 7, sizeof grown);
    OK(teeny_generate_options_init(&grown.options, sizeof grown));
    CHECK(grown.options.size == sizeof grown && grown.later == 0);
}

/* The same arguments are refused by all three, before anything is fed. */
typedef struct target {
    const teeny_model *model;
    teeny_session *session;
    received got;
    int which;
} target;

static teeny_status attempt(target *t, const char *prompt, size_t len,
                            const teeny_generate_options *options) {
    teeny_stream *stream = NULL;
    teeny_text piece = {NULL, 0};
    teeny_status status;
    if (t->which == 0) {
        return teeny_generate(t->model, prompt, len, NULL, options, receive, &t->got);
    }
    if (t->which == 1) {
        return teeny_session_generate(t->session, NULL, prompt, len, options, receive, &t->got);
    }
    status = teeny_stream_new(t->session, NULL, prompt, len, options, &stream);
    if (status == TEENY_OK) {
        status = teeny_stream_next(stream, &piece);
        CHECK(piece.data == NULL);
        /* Freeing clears the message. */
        return status == TEENY_OK ? TEENY_OK
                                  : (teeny_stream_free(stream),
                                     teeny_session_generate(t->session, NULL, prompt, len, options,
                                                            receive, &t->got));
    }
    CHECK(stream == NULL);
    return status;
}

static void refusing(const teeny_model *model) {
    target t;
    teeny_generate_options o;
    newer grown;
    teeny_text stop[2] = {{"A", 1}, {NULL, 1}};
    char unaligned[sizeof o + 16] = {0};
    memset(&t, 0, sizeof t);
    t.model = model;
    t.session = new_session(model);
    t.got = nothing();
    for (t.which = 0; t.which < 3; t.which++) {
        EXPECT(attempt(&t, NULL, 1, NULL), TEENY_NULL_POINTER, "prompt: found NULL");
        EXPECT(attempt(&t, "", 0, NULL), TEENY_INVALID_ARGUMENT, "prompt: found no text");
        EXPECT(attempt(&t, "A", SIZE_MAX, NULL), TEENY_INVALID_ARGUMENT, "prompt: found length");
        EXPECT(attempt(&t, "A\xff", 2, NULL), TEENY_INVALID_ARGUMENT,
               "prompt: found byte 0xff at 1, expected UTF-8");
        EXPECT(attempt(&t, "A\303\251", 2, NULL), TEENY_INVALID_ARGUMENT,
               "prompt: found byte 0xc3 at 1");
        EXPECT(attempt(&t, "AB1C", 4, NULL), TEENY_TOKENIZER, "'1' (U+0031) at byte 2");
        EXPECT(attempt(&t, "A\0B", 3, NULL), TEENY_TOKENIZER, "(U+0000) at byte 1");
#define REFUSED(change, status, part)                                                              \
    do {                                                                                           \
        o = generate_options();                                                                    \
        change;                                                                                    \
        EXPECT(attempt(&t, "A", 1, &o), status, part);                                             \
    } while (0)
        REFUSED(o.size = 0, TEENY_INVALID_ARGUMENT, "options.size: found 0, expected sizeof");
        REFUSED(o.size = sizeof o - 1, TEENY_INVALID_ARGUMENT, "options.size");
        REFUSED(o.size = SIZE_MAX, TEENY_INVALID_ARGUMENT, "options.size");
        REFUSED(o.ignore_end = 2, TEENY_INVALID_ARGUMENT, "ignore_end: found 2");
        REFUSED(o.raw_bytes = 2, TEENY_INVALID_ARGUMENT, "raw_bytes: found 2");
        REFUSED(o.n_stop = 2, TEENY_NULL_POINTER, "options.stop: found NULL");
        REFUSED((o.n_stop = 2, o.stop = stop), TEENY_NULL_POINTER, "options.stop[1]: found NULL");
        stop[1].data = "\xff";
        REFUSED((o.n_stop = 2, o.stop = stop), TEENY_INVALID_ARGUMENT,
                "options.stop[1]: found byte 0xff at 0");
        stop[1].data = "A";
        stop[1].len = SIZE_MAX;
        REFUSED((o.n_stop = 2, o.stop = stop), TEENY_INVALID_ARGUMENT, "options.stop[1]: found l");
        REFUSED((o.n_stop = SIZE_MAX, o.stop = stop), TEENY_INVALID_ARGUMENT,
                "options.stop: found length");
        REFUSED((o.n_stop = 1, o.stop = (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT,
                "options.stop: found address");
#undef REFUSED
        stop[1].data = NULL;
        stop[1].len = 1;
        EXPECT(attempt(&t, "A", 1, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT,
               "options: found address");
        grown.options = generate_options();
        grown.options.size = sizeof grown;
        grown.later = 1;
        EXPECT(attempt(&t, "A", 1, &grown.options), TEENY_INVALID_ARGUMENT,
               "older than the program's teeny.h");
    }
    CHECK(t.got.pieces == 0 && teeny_session_position(t.session) == 0);
    {
        teeny_sampler_options s = sampler_options();
        teeny_stream *stream = NULL;
        s.temperature = NAN;
        EXPECT(teeny_generate(model, "A", 1, &s, NULL, receive, &t.got), TEENY_INVALID_ARGUMENT,
               "temperature: found NaN");
        s.size = 1;
        FAILS(teeny_generate(model, "A", 1, &s, NULL, receive, &t.got), TEENY_INVALID_ARGUMENT);
        EXPECT(teeny_generate(model, "A", 1, NULL, NULL, NULL, &t.got), TEENY_NULL_POINTER,
               "callback: found NULL");
        EXPECT(teeny_session_generate(t.session, NULL, "A", 1, NULL, NULL, &t.got),
               TEENY_NULL_POINTER, "callback: found NULL");
        EXPECT(teeny_stream_new(t.session, NULL, "A", 1, NULL, NULL), TEENY_NULL_POINTER,
               "out: found NULL");
        FAILS(teeny_stream_new(t.session, NULL, "A", 1, NULL, (void *)(unaligned + 1)),
              TEENY_INVALID_ARGUMENT);
        MUST(teeny_stream_new(t.session, NULL, "A", 1, NULL, &stream));
        EXPECT(teeny_stream_next(stream, NULL), TEENY_NULL_POINTER, "piece: found NULL");
        FAILS(teeny_stream_next(stream, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
        EXPECT(teeny_stream_end_reason(stream, NULL), TEENY_NULL_POINTER, "reason: found NULL");
        FAILS(teeny_stream_end_reason(stream, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
        teeny_stream_free(stream);
    }
    CHECK(t.got.pieces == 0 && teeny_session_position(t.session) == 0);
    teeny_session_free(t.session);
}

static received generated(const teeny_model *model, const teeny_sampler_options *sampler,
                          const teeny_generate_options *options) {
    received got = nothing();
    /* The prompt is "ABC": text needs no zero byte at its end. */
    OK(teeny_generate(model, "ABC1", 3, sampler, options, receive, &got));
    CHECK(got.whole);
    return got;
}

static int32_t end_reason(const teeny_session *session) {
    teeny_session_stats stats;
    memset(&stats, 0, sizeof stats);
    OK(teeny_session_get_stats(session, &stats, sizeof stats));
    return stats.end_reason;
}

static void one_call(const teeny_model *model) {
    teeny_generate_options o = generate_options();
    teeny_sampler_options s = sampler_options();
    newer grown;
    received standard = generated(model, NULL, NULL);
    received expected = by_hand(model, "ABC", 256, NULL, NULL);
    received got = generated(model, &s, &o);

    CHECK(standard.pieces == 256 && same_text(&standard, &got) && same_text(&standard, &expected));
    s.seed = 1;
    got = generated(model, &s, NULL);
    expected = by_hand(model, "ABC", 256, &s, NULL);
    CHECK(!same_text(&standard, &got) && same_text(&expected, &got));
    s.repeat_penalty = 1.5F;
    s.presence_penalty = 0.5F;
    s.penalty_last_n = 7;
    s.top_k = 0;
    o.max_tokens = 100;
    got = generated(model, &s, &o);
    expected = by_hand(model, "ABC", 100, &s, NULL);
    CHECK(same_text(&expected, &got));
    s.temperature = 0;
    got = generated(model, &s, &o);
    expected = by_hand(model, "ABC", 100, &s, NULL);
    CHECK(same_text(&expected, &got));

    o.max_tokens = 0;
    got = generated(model, NULL, &o);
    CHECK(got.pieces == 0);
    o.max_tokens = 30;
    got = generated(model, NULL, &o);
    CHECK(got.pieces == 30 && memcmp(got.text, standard.text, got.len) == 0);
    o.raw_bytes = 1;
    expected = generated(model, NULL, &o);
    CHECK(same_text(&expected, &got));
    memset(&grown, 0, sizeof grown);
    OK(teeny_generate_options_init(&grown.options, sizeof grown));
    got = generated(model, NULL, &grown.options);
    CHECK(same_text(&standard, &got));

    /* Without an end, until the callback has enough. */
    o = generate_options();
    o.max_tokens = SIZE_MAX;
    got = nothing();
    got.stop_after = 300;
    EXPECT(teeny_generate(model, "ABC", 3, NULL, &o, receive, &got), TEENY_CANCELLED,
           "the callback returned 42");
    CHECK(got.pieces == 300 && memcmp(got.text, standard.text, standard.len) == 0);
}

/* Where a character of the text begins, at or after a byte. */
static size_t whole(const received *text, size_t at) {
    return ((unsigned char)text->text[at] & 0xC0) == 0x80 ? at + 1 : at;
}

static size_t find(const received *text, const char *part, size_t len) {
    size_t at;
    for (at = 0; at + len <= text->len; at++) {
        if (memcmp(text->text + at, part, len) == 0) {
            return at;
        }
    }
    return SIZE_MAX;
}

/* A stop text of one to three characters; the text ends where it first is. */
static void stopping(const teeny_model *model) {
    received standard = generated(model, NULL, NULL);
    size_t length;
    for (length = 1; length <= 3; length++) {
        teeny_generate_options o = generate_options();
        teeny_text stop[3];
        const size_t begin = whole(&standard, 40);
        size_t end = begin;
        size_t at;
        size_t i;
        received got;
        teeny_session *session = new_session(model);
        uint32_t tokens[300];
        size_t n = 0;
        for (i = 0; i < length; i++) {
            end = whole(&standard, end + 1);
        }
        stop[0].data = "never to be found";
        stop[0].len = strlen(stop[0].data);
        stop[1].data = standard.text + begin;
        stop[1].len = end - begin;
        stop[2].data = "";
        stop[2].len = 0;
        o.stop = stop;
        o.n_stop = 3;
        at = find(&standard, stop[1].data, stop[1].len);
        got = generated(model, NULL, &o);
        CHECK(at != SIZE_MAX && got.len == at && memcmp(got.text, standard.text, at) == 0);

        got = nothing();
        OK(teeny_session_generate(session, NULL, "ABC", 3, &o, receive, &got));
        CHECK(got.len == at && memcmp(got.text, standard.text, at) == 0);
        CHECK(end_reason(session) == TEENY_END_STOP_TEXT);
        /* The session holds the stop text. */
        memcpy(tokens, "\0\0\0\0\1\0\0\0\2\0\0\0", 12);
        OK(teeny_model_encode(model, standard.text, at + stop[1].len, tokens + 3, 297, &n));
        CHECK(IS_FED(session, model, tokens, n + 3));
        teeny_session_free(session);
    }
}

/* In parts that go on from each other, the last without its own prompt. */
static void in_a_session(const teeny_model *model) {
    state expected_state;
    state found;
    received expected = by_hand(model, "ABC", 100, NULL, &expected_state);
    received got = nothing();
    teeny_session *session = new_session(model);
    teeny_sampler *sampler = NULL;
    teeny_generate_options o = generate_options();
    teeny_session_stats stats;
    uint32_t tokens[120];
    size_t n = 0;
    MUST(teeny_sampler_new(NULL, &sampler));
    o.max_tokens = 30;
    OK(teeny_session_generate(session, sampler, "ABC", 3, &o, receive, &got));
    CHECK(teeny_session_position(session) == 33 && end_reason(session) == TEENY_END_LENGTH);
    o.max_tokens = 0;
    OK(teeny_session_generate(session, sampler, "", 0, &o, receive, &got));
    CHECK(teeny_session_position(session) == 33);
    o.max_tokens = 70;
    OK(teeny_session_generate(session, sampler, NULL, 0, &o, receive, &got));
    CHECK(same_text(&expected, &got) && got.whole && got.pieces == 100);
    found = state_of(session);
    CHECK(same_state(&expected_state, &found));
    OK(teeny_session_get_stats(session, &stats, sizeof stats));
    CHECK(stats.prefill_tokens == 3 && stats.decode_tokens == 100 && stats.first_token_ns > 0);
    CHECK(stats.decode_ns > 0 && stats.prefill_ns > 0 && stats.end_reason == TEENY_END_LENGTH);

    /* A second prompt after the first text, as in a chat; a sampler of the defaults. */
    OK(teeny_session_reset(session));
    got = nothing();
    o.max_tokens = 5;
    OK(teeny_session_generate(session, NULL, "AB", 2, &o, receive, &got));
    OK(teeny_model_encode(model, got.text, got.len, tokens + 2, 100, &n));
    CHECK(n == 5);
    tokens[0] = 0;
    tokens[1] = 1;
    tokens[7] = 3;
    o.max_tokens = 0;
    OK(teeny_session_generate(session, NULL, "D", 1, &o, receive, &got));
    CHECK(got.pieces == 5 && IS_FED(session, model, tokens, 8));

    /* Cancelled by the callback: what was handed out is in the session. */
    OK(teeny_session_reset(session));
    got = nothing();
    got.stop_after = 4;
    o.max_tokens = 50;
    EXPECT(teeny_session_generate(session, NULL, "AB", 2, &o, receive, &got), TEENY_CANCELLED,
           "the callback returned 42");
    CHECK(end_reason(session) == TEENY_END_CANCELLED);
    OK(teeny_model_encode(model, got.text, got.len, tokens + 2, 100, &n));
    CHECK(n == 4 && IS_FED(session, model, tokens, 6));
    teeny_session_free(session);
    teeny_sampler_free(sampler);
}

static void full_context(const teeny_model *model) {
    received standard = generated(model, NULL, NULL);
    received got = nothing();
    teeny_session *session = new_session_with(model, TEENY_OVERFLOW_STOP);
    /* A context of 24: 3 of the prompt, 21 of ours, and one more that need not be fed. */
    OK(teeny_session_generate(session, NULL, "ABC", 3, NULL, receive, &got));
    CHECK(got.pieces == 22 && memcmp(got.text, standard.text, got.len) == 0);
    CHECK(end_reason(session) == TEENY_END_CONTEXT_FULL);
    CHECK(teeny_session_position(session) == CONTEXT);
    teeny_session_free(session);

    session = new_session_with(model, TEENY_OVERFLOW_ERROR);
    got = nothing();
    EXPECT(teeny_session_generate(session, NULL, "ABC", 3, NULL, receive, &got),
           TEENY_CONTEXT_FULL, "context full");
    CHECK(got.pieces == 22 && end_reason(session) == TEENY_END_FAILED);
    CHECK(teeny_session_position(session) == CONTEXT);
    OK(teeny_session_reset(session));
    EXPECT(teeny_session_generate(session, NULL, "AAAAAAAAAAAAAAAAAAAAAAAAA", 25, NULL, receive,
                                  &got),
           TEENY_CONTEXT_FULL, "max_seq_len = 24");
    CHECK(got.pieces == 22 && teeny_session_position(session) == 0);
    teeny_session_free(session);
}

static void streaming(const teeny_model *model) {
    state expected_state;
    state found;
    received expected = by_hand(model, "ABC", 90, NULL, &expected_state);
    received got = nothing();
    teeny_session *session = new_session(model);
    teeny_sampler *sampler = NULL;
    teeny_stream *stream = NULL;
    teeny_text piece = {NULL, 77};
    teeny_generate_options o = generate_options();
    int32_t reason = -1;
    char prompt[] = "ABC";
    MUST(teeny_sampler_new(NULL, &sampler));
    o.max_tokens = 90;
    MUST(teeny_stream_new(session, sampler, prompt, 3, &o, &stream));
    /* Prompt and options are the caller's again. */
    memset(prompt, 0, sizeof prompt);
    memset(&o, 0, sizeof o);
    CHECK(teeny_session_position(session) == 0);
    OK(teeny_stream_end_reason(stream, &reason));
    CHECK(reason == TEENY_END_NONE);
    while (piece.len > 0) {
        OK(teeny_stream_next(stream, &piece));
        if (piece.len > 0) {
            CHECK(receive(&got, piece.data, piece.len) == 0);
            CHECK(teeny_session_position(session) == 3 + (size_t)got.pieces);
        }
    }
    CHECK(got.whole && same_text(&expected, &got));
    OK(teeny_stream_end_reason(stream, &reason));
    CHECK(reason == TEENY_END_LENGTH && end_reason(session) == TEENY_END_LENGTH);
    found = state_of(session);
    CHECK(same_state(&expected_state, &found));
    for (reason = 0; reason < 3; reason++) {
        piece.len = 77;
        OK(teeny_stream_next(stream, &piece));
        CHECK(piece.len == 0 && piece.data != NULL);
    }
    CHECK(teeny_session_position(session) == 93);
    teeny_stream_free(stream);

    /* One after the other in the same session, and left unread. */
    MUST(teeny_stream_new(session, sampler, NULL, 0, NULL, &stream));
    OK(teeny_stream_next(stream, &piece));
    CHECK(piece.len > 0);
    teeny_stream_free(stream);
    MUST(teeny_stream_new(session, sampler, "A", 1, NULL, &stream));
    teeny_stream_free(stream);
    CHECK(teeny_session_position(session) == 94);

    /* An empty prompt in an empty session fails once, then has ended. */
    OK(teeny_session_reset(session));
    MUST(teeny_stream_new(session, NULL, NULL, 0, NULL, &stream));
    piece.len = 77;
    EXPECT(teeny_stream_next(stream, &piece), TEENY_INVALID_ARGUMENT, "prompt: found no text");
    CHECK(piece.len == 77);
    OK(teeny_stream_end_reason(stream, &reason));
    CHECK(reason == TEENY_END_FAILED);
    OK(teeny_stream_next(stream, &piece));
    CHECK(piece.len == 0);
    teeny_stream_free(stream);
    teeny_session_free(session);
    teeny_sampler_free(sampler);
}

/* The callback's calls of teeny, where they fail too, do not disturb. */
static int32_t call_again(void *user_data, const char *text, size_t len) {
    teeny_model *none = NULL;
    received got = nothing();
    teeny_generate_options o = generate_options();
    (void)text;
    (void)len;
    o.max_tokens = 2;
    FAILS(teeny_model_load("nowhere.safetensors", NULL, &none), TEENY_IO);
    OK(teeny_generate(user_data, "A", 1, NULL, &o, receive, &got));
    FAILS(teeny_model_load("nowhere.safetensors", NULL, &none), TEENY_IO);
    return 0;
}

void generate_group(void) {
    static const char *const kinds[] = {"model", "learned"};
    size_t i;
    initialising();
    for (i = 0; i < 2; i++) {
        teeny_model *model = load(kinds[i]);
        teeny_generate_options o = generate_options();
        refusing(model);
        one_call(model);
        stopping(model);
        in_a_session(model);
        full_context(model);
        streaming(model);
        o.max_tokens = 3;
        OK(teeny_generate(model, "A", 1, NULL, &o, call_again, model));
        teeny_model_free(model);
    }
}
