/* Cancelling: before a call, in the middle of one, taken back. What was fed until then stays, and
 * going on from there gives what was never interrupted. */
#include "check.h"

static const char *const kinds[] = {"model", "learned"};

static void sleep_ms(int ms) {
    struct timespec time;
    time.tv_sec = 0;
    time.tv_nsec = ms * 1000000L;
    nanosleep(&time, NULL);
}

static void before_a_call(const teeny_model *model) {
    uint32_t tokens[200];
    float log_probs[200];
    teeny_session *s;
    received got = nothing();
    random_tokens(tokens, 200, 21);
    s = fed(model, tokens, 50);

    OK(teeny_session_cancel(s, 1));
    EXPECT(teeny_session_feed(s, tokens + 50, 150), TEENY_CANCELLED, "cancelled");
    CHECK(teeny_session_position(s) == 50);
    CHECK(IS_FED(s, model, tokens, 50));
    /* Noticed once; asking twice is asking once. */
    OK(teeny_session_feed(s, tokens + 50, 50));
    OK(teeny_session_cancel(s, 1));
    OK(teeny_session_cancel(s, 1));
    FAILS(teeny_session_decode(s, tokens[100]), TEENY_CANCELLED);
    OK(teeny_session_decode(s, tokens[100]));
    CHECK(IS_FED(s, model, tokens, 101));
    OK(teeny_session_cancel(s, 1));
    FAILS(teeny_session_score(s, tokens + 101, 50, log_probs, 0, NULL, NULL), TEENY_CANCELLED);
    CHECK(IS_FED(s, model, tokens, 101));
    OK(teeny_session_cancel(s, 1));
    FAILS(teeny_session_generate(s, NULL, "AB", 2, NULL, receive, &got), TEENY_CANCELLED);
    CHECK(IS_FED(s, model, tokens, 101) && got.pieces == 0);

    /* Taken back, in both ways. */
    OK(teeny_session_cancel(s, 1));
    OK(teeny_session_cancel(s, 0));
    OK(teeny_session_cancel(s, 0));
    OK(teeny_session_feed(s, tokens + 101, 99));
    CHECK(IS_FED(s, model, tokens, 200));
    OK(teeny_session_cancel(s, 1));
    OK(teeny_session_reset(s));
    OK(teeny_session_feed(s, tokens, 10));
    CHECK(IS_FED(s, model, tokens, 10));
    FAILS(teeny_session_cancel(s, 2), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_cancel(s, -1), TEENY_INVALID_ARGUMENT);
    OK(teeny_session_decode(s, tokens[10]));
    teeny_session_free(s);
}

/* What only looks, or goes back, is not cancelled and does not use the wish up. */
static void not_noticed(const teeny_model *model) {
    uint32_t tokens[20];
    teeny_session *s;
    teeny_session *fork = NULL;
    teeny_sampler *sampler = NULL;
    uint32_t token = 77;
    random_tokens(tokens, 20, 22);
    s = fed(model, tokens, 20);
    MUST(teeny_sampler_new(NULL, &sampler));
    OK(teeny_session_cancel(s, 1));
    OK(teeny_session_truncate(s, 12));
    CHECK(IS_FED(s, model, tokens, 12));
    OK(teeny_session_sample(s, sampler, &token));
    OK(teeny_session_fork(s, &fork));
    /* The wish was for the parent. */
    OK(teeny_session_decode(fork, tokens[12]));
    FAILS(teeny_session_decode(s, tokens[12]), TEENY_CANCELLED);
    OK(teeny_session_decode(s, tokens[12]));
    CHECK(IS_FED(s, model, tokens, 13) && IS_FED(fork, model, tokens, 13));
    teeny_session_free(fork);
    teeny_session_free(s);
    teeny_sampler_free(sampler);
}

typedef struct job {
    teeny_session *session;
    const uint32_t *tokens;
    size_t n;
    float *log_probs; /* Scores the tokens if it is not NULL. */
    teeny_status status;
} job;

static void *feed(void *argument) {
    job *mine = argument;
    if (mine->log_probs == NULL) {
        mine->status = teeny_session_feed(mine->session, mine->tokens, mine->n);
    } else {
        mine->status = teeny_session_score(mine->session, mine->tokens, mine->n, mine->log_probs, 0,
                                           NULL, NULL);
    }
    return NULL;
}

/* An interrupted session can be forked, and saved and restored, as any other. */
static void copies(const teeny_model *model, const teeny_session *s, const uint32_t *tokens,
                   size_t position) {
    teeny_session *fork = NULL;
    teeny_session *restored = new_session(model);
    size_t len = 0;
    unsigned char *data;
    MUST(teeny_session_fork(s, &fork));
    CHECK(IS_FED(fork, model, tokens, position));
    OK(teeny_session_decode(fork, tokens[position]));
    CHECK(IS_FED(fork, model, tokens, position + 1));
    teeny_session_free(fork);
    OK(teeny_session_save(s, NULL, 0, &len));
    data = malloc(len);
    if (data == NULL) {
        exit(1);
    }
    OK(teeny_session_save(s, data, len, &len));
    OK(teeny_session_restore(restored, data, len));
    CHECK(IS_FED(restored, model, tokens, position));
    OK(teeny_session_decode(restored, tokens[position]));
    CHECK(IS_FED(restored, model, tokens, position + 1));
    free(data);
    teeny_session_free(restored);
}

/* Far more tokens than a machine feeds in the milliseconds until it is cancelled. (A long prompt's
 * beginning need not be fed at all where positions are learned; each token's score needs it.) */
static void from_another_thread(const teeny_model *model, int ms, int scores) {
    const size_t n = quick ? 100000 : 2000000;
    const size_t first = 30;
    uint32_t *tokens = malloc((n + first) * sizeof *tokens);
    teeny_session *s;
    pthread_t thread;
    job mine;
    size_t position;
    if (tokens == NULL) {
        exit(1);
    }
    random_tokens(tokens, n + first, 23);
    s = fed(model, tokens, first);
    mine.session = s;
    mine.tokens = tokens + first;
    mine.n = n;
    mine.log_probs = scores ? malloc(n * sizeof(float)) : NULL;
    mine.status = TEENY_OK;
    if (pthread_create(&thread, NULL, feed, &mine) != 0) {
        exit(1);
    }
    sleep_ms(ms);
    OK(teeny_session_cancel(s, 1));
    pthread_join(thread, NULL);
    CHECK(mine.status == TEENY_CANCELLED);
    position = teeny_session_position(s);
    CHECK(position >= first && position < first + n);
    CHECK(IS_FED(s, model, tokens, position));
    copies(model, s, tokens, position);
    OK(teeny_session_feed(s, tokens + position, 100));
    OK(teeny_session_decode(s, tokens[position + 100]));
    CHECK(IS_FED(s, model, tokens, position + 101));
    OK(teeny_session_truncate(s, position + 99));
    CHECK(IS_FED(s, model, tokens, position + 99));
    teeny_session_free(s);
    free(mine.log_probs);
    free(tokens);
}

static int32_t cancel_after_three(void *user_data, const char *text, size_t len) {
    static int pieces;
    (void)text;
    (void)len;
    pieces++;
    if (pieces == 3) {
        pieces = 0;
        /* Never BUSY, not even here. */
        OK(teeny_session_cancel(user_data, 1));
    }
    return 0;
}

static void from_its_callback(const teeny_model *model) {
    teeny_session *s = new_session(model);
    teeny_session_stats stats;
    EXPECT(teeny_session_generate(s, NULL, "ABC", 3, NULL, cancel_after_three, s), TEENY_CANCELLED,
           "cancelled");
    CHECK(teeny_session_position(s) == 6);
    OK(teeny_session_get_stats(s, &stats, sizeof stats));
    CHECK(stats.end_reason == TEENY_END_CANCELLED);
    OK(teeny_session_decode(s, 0));
    teeny_session_free(s);
}

static void while_streaming(const teeny_model *model) {
    teeny_session *s = new_session(model);
    teeny_stream *stream = NULL;
    teeny_text piece = {NULL, 0};
    int32_t reason = -1;
    size_t position;
    MUST(teeny_stream_new(s, NULL, "ABC", 3, NULL, &stream));
    OK(teeny_stream_next(stream, &piece));
    OK(teeny_stream_next(stream, &piece));
    OK(teeny_stream_end_reason(stream, &reason));
    CHECK(reason == TEENY_END_NONE);
    position = teeny_session_position(s);
    OK(teeny_session_cancel(s, 1));
    FAILS(teeny_stream_next(stream, &piece), TEENY_CANCELLED);
    OK(teeny_stream_end_reason(stream, &reason));
    CHECK(reason == TEENY_END_CANCELLED);
    CHECK(teeny_session_position(s) == position);
    OK(teeny_stream_next(stream, &piece));
    CHECK(piece.len == 0);
    OK(teeny_session_decode(s, 0));
    teeny_stream_free(stream);
    teeny_session_free(s);
}

void cancel_group(void) {
    size_t i;
    int ms;
    for (i = 0; i < 2; i++) {
        teeny_model *model = load(kinds[i]);
        before_a_call(model);
        not_noticed(model);
        for (ms = 1; ms < (quick ? 2 : 12); ms++) {
            from_another_thread(model, ms, 1);
            if (i == 0) {
                from_another_thread(model, 3 * ms, 0);
            }
        }
        from_its_callback(model);
        while_streaming(model);
        teeny_model_free(model);
    }
}
