/* Objects that are in use: from their own callback, from another thread, freed meanwhile. */
#include "check.h"

static const uint32_t some[] = {1, 2, 3};

typedef struct inside {
    teeny_model *model;
    teeny_session *session;
    teeny_sampler *sampler;
    teeny_stream *stream;
    received got;
} inside;

/* The session and the sampler of the call are busy; all else works. */
static int32_t meddle(void *user_data, const char *text, size_t len) {
    inside *in = user_data;
    const float *numbers = NULL;
    float log_probs[3];
    static const float logits[] = {1, 2};
    uint32_t token = 77;
    size_t n = 77;
    char byte = 0;
    teeny_session *fork = NULL;
    teeny_sampler *clone = NULL;
    teeny_stream *stream = NULL;
    teeny_text piece = {NULL, 77};
    teeny_session_stats stats;
    teeny_session *other;
    int32_t reason = 77;
    EXPECT(teeny_session_feed(in->session, some, 3), TEENY_BUSY, "session");
    FAILS(teeny_session_decode(in->session, 1), TEENY_BUSY);
    FAILS(teeny_session_logits(in->session, &numbers, &n), TEENY_BUSY);
    FAILS(teeny_session_hidden(in->session, &numbers, &n), TEENY_BUSY);
    FAILS(teeny_session_sample(in->session, in->sampler, &token), TEENY_BUSY);
    FAILS(teeny_session_truncate(in->session, 1), TEENY_BUSY);
    FAILS(teeny_session_fork(in->session, &fork), TEENY_BUSY);
    FAILS(teeny_session_reset(in->session), TEENY_BUSY);
    FAILS(teeny_session_save(in->session, &byte, 1, &n), TEENY_BUSY);
    FAILS(teeny_session_save_file(in->session, path_of("never")), TEENY_BUSY);
    FAILS(teeny_session_restore(in->session, &byte, 1), TEENY_BUSY);
    FAILS(teeny_session_restore_file(in->session, path_of("foreign")), TEENY_BUSY);
    FAILS(teeny_session_score(in->session, some, 3, log_probs, 0, NULL, NULL), TEENY_BUSY);
    FAILS(teeny_session_get_stats(in->session, &stats, sizeof stats), TEENY_BUSY);
    FAILS(teeny_session_generate(in->session, NULL, "A", 1, NULL, receive, &in->got), TEENY_BUSY);
    CHECK(teeny_session_position(in->session) == 0 && *teeny_last_error());
    EXPECT(teeny_sampler_accept(in->sampler, 1), TEENY_BUSY, "sampler");
    FAILS(teeny_sampler_sample(in->sampler, logits, 2, &token), TEENY_BUSY);
    FAILS(teeny_sampler_reset(in->sampler), TEENY_BUSY);
    FAILS(teeny_sampler_clone(in->sampler, &clone), TEENY_BUSY);
    FAILS(teeny_sampler_add_top_k(in->sampler, 1), TEENY_BUSY);
    FAILS(teeny_sampler_describe(in->sampler, &byte, 1, &n), TEENY_BUSY);
    CHECK(numbers == NULL && token == 77 && n == 77 && fork == NULL && clone == NULL);

    /* A stream of the session can be made, but not used. */
    OK(teeny_stream_new(in->session, in->sampler, "A", 1, NULL, &stream));
    FAILS(teeny_stream_next(stream, &piece), TEENY_BUSY);
    OK(teeny_stream_end_reason(stream, &reason));
    CHECK(piece.len == 77 && reason == TEENY_END_NONE);
    teeny_stream_free(stream);

    other = fed(in->model, some, 3);
    CHECK(IS_FED(other, in->model, some, 3));
    teeny_session_free(other);
    return receive(&in->got, text, len);
}

/* Frees all that the call uses; it goes on as if nothing had happened. */
static int32_t free_all(void *user_data, const char *text, size_t len) {
    inside *in = user_data;
    teeny_session_free(in->session);
    teeny_sampler_free(in->sampler);
    teeny_model_free(in->model);
    CHECK(teeny_object_count() == 0);
    return receive(&in->got, text, len);
}

static void in_its_callback(void) {
    inside in;
    received expected = nothing();
    teeny_generate_options o = generate_options();
    memset(&in, 0, sizeof in);
    o.max_tokens = quick ? 4 : 40;
    in.model = load("model");
    OK(teeny_generate(in.model, "ABC", 3, NULL, &o, receive, &expected));
    in.session = new_session(in.model);
    MUST(teeny_sampler_new(NULL, &in.sampler));
    in.got = nothing();
    OK(teeny_session_generate(in.session, in.sampler, "ABC", 3, &o, meddle, &in));
    CHECK(same_text(&expected, &in.got));
    CHECK(teeny_session_position(in.session) == 3 + o.max_tokens);

    OK(teeny_session_reset(in.session));
    OK(teeny_sampler_reset(in.sampler));
    in.got = nothing();
    OK(teeny_session_generate(in.session, in.sampler, "ABC", 3, &o, free_all, &in));
    CHECK(same_text(&expected, &in.got) && teeny_object_count() == 0);
    FAILS(teeny_session_reset(in.session), TEENY_INVALID_HANDLE);

    in.model = load("model");
    in.session = NULL;
    in.sampler = NULL;
    in.got = nothing();
    OK(teeny_generate(in.model, "ABC", 3, NULL, &o, free_all, &in));
    CHECK(same_text(&expected, &in.got) && teeny_object_count() == 0);
}

/* Two threads decode the same token in one session: each call is done once or refused. */
typedef struct decoder {
    teeny_session *session;
    int n_ok;
    int n_busy;
    int n_other;
} decoder;

static void *decode_often(void *argument) {
    decoder *mine = argument;
    const int n = quick ? 100 : 5000;
    int i;
    for (i = 0; i < n; i++) {
        switch (teeny_session_decode(mine->session, 7)) {
        case TEENY_OK:
            mine->n_ok++;
            break;
        case TEENY_BUSY:
            mine->n_busy++;
            break;
        default:
            mine->n_other++;
        }
    }
    return NULL;
}

static void two_threads(void) {
    enum { THREADS = 4, MOST = 20000 };
    teeny_model *model = load("model");
    decoder decoders[THREADS];
    uint32_t *tokens = malloc(MOST * sizeof *tokens);
    size_t total = 0;
    int i;
    if (tokens == NULL) {
        exit(1);
    }
    for (i = 0; i < MOST; i++) {
        tokens[i] = 7;
    }
    memset(decoders, 0, sizeof decoders);
    decoders[0].session = new_session(model);
    for (i = 1; i < THREADS; i++) {
        decoders[i].session = decoders[0].session;
    }
    on_threads(decode_often, decoders, sizeof decoders[0], THREADS);
    for (i = 0; i < THREADS; i++) {
        CHECK(decoders[i].n_other == 0);
        total += (size_t)decoders[i].n_ok;
    }
    CHECK(total > 0 && total == teeny_session_position(decoders[0].session));
    CHECK(IS_FED(decoders[0].session, model, tokens, total));
    teeny_session_free(decoders[0].session);
    teeny_model_free(model);
    free(tokens);
}

typedef struct long_call {
    teeny_session *session;
    uint32_t *tokens;
    size_t n;
    teeny_status status;
} long_call;

static void *feed(void *argument) {
    long_call *mine = argument;
    /* The other thread asks for the stats now and then. */
    do {
        mine->status = teeny_session_feed(mine->session, mine->tokens, mine->n);
    } while (mine->status == TEENY_BUSY);
    return NULL;
}

/* All that another thread may do to a session in the middle of a call. */
static void busy_elsewhere(int frees) {
    teeny_model *model = load("model");
    teeny_session *session = new_session(model);
    teeny_session_stats stats;
    long_call call;
    pthread_t thread;
    size_t tries = 0;
    call.n = frees ? 3000 : quick ? 100000 : 1000000;
    call.tokens = malloc(call.n * sizeof *call.tokens);
    call.session = session;
    if (call.tokens == NULL) {
        exit(1);
    }
    random_tokens(call.tokens, call.n, 61);
    if (pthread_create(&thread, NULL, feed, &call) != 0) {
        exit(1);
    }
    if (!frees) {
        teeny_status status = TEENY_OK;
        while (status == TEENY_OK && tries++ < 100000000) {
            status = teeny_session_get_stats(session, &stats, sizeof stats);
        }
        CHECK(status == TEENY_BUSY && strstr(teeny_last_error(), "session") != NULL);
        /* Ended by the one thing that is never busy. */
        OK(teeny_session_cancel(session, 1));
        pthread_join(thread, NULL);
        CHECK(call.status == TEENY_CANCELLED);
        CHECK(teeny_session_position(session) < call.n);
        teeny_session_free(session);
        teeny_model_free(model);
    } else {
        teeny_model_free(model);
        teeny_session_free(session);
        FAILS(teeny_session_reset(session), TEENY_INVALID_HANDLE);
        pthread_join(thread, NULL);
        CHECK(call.status == TEENY_OK || call.status == TEENY_INVALID_HANDLE);
    }
    free(call.tokens);
    CHECK(teeny_object_count() == 0);
}

/* One sampler for two threads: as one session. */
typedef struct drawer {
    teeny_sampler *sampler;
    int sound;
} drawer;

static void *draw(void *argument) {
    static const float logits[] = {1, 2, 3, 4};
    drawer *mine = argument;
    const int n = quick ? 100 : 5000;
    int i;
    mine->sound = 1;
    for (i = 0; i < n; i++) {
        uint32_t token = 77;
        teeny_status status = teeny_sampler_sample(mine->sampler, logits, 4, &token);
        mine->sound &= status == TEENY_OK ? token < 4 : status == TEENY_BUSY && token == 77;
    }
    return NULL;
}

static void shared_sampler(void) {
    drawer drawers[4];
    int i;
    MUST(teeny_sampler_new(NULL, &drawers[0].sampler));
    for (i = 1; i < 4; i++) {
        drawers[i].sampler = drawers[0].sampler;
    }
    on_threads(draw, drawers, sizeof drawers[0], 4);
    for (i = 0; i < 4; i++) {
        CHECK(drawers[i].sound);
    }
    teeny_sampler_free(drawers[0].sampler);
}

void reentry_group(void) {
    in_its_callback();
    two_threads();
    busy_elsewhere(0);
    busy_elsewhere(1);
    shared_sampler();
}
