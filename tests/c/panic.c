/* panic FOLDER: a fault inside teeny. Linked with a library that has a function for it.
 *
 * The call says TEENY_PANIC and the session it hit refuses until it is reset; all else works on.
 */
#include "check.h"

/* Of the cargo feature fault-injection: panics while it uses the session. */
teeny_status teeny_test_panic(teeny_session *session);

static const uint32_t some[] = {1, 2, 3};

static void *on_another_thread(void *session) {
    EXPECT(teeny_test_panic(*(teeny_session **)session), TEENY_PANIC, "fault in teeny");
    return NULL;
}

static int32_t fault_within(void *user_data, const char *text, size_t len) {
    (void)text;
    (void)len;
    EXPECT(teeny_test_panic(*(teeny_session **)user_data), TEENY_PANIC, "fault in teeny");
    return 0;
}

static void refuses(teeny_session *session, teeny_sampler *sampler, teeny_stream *stream) {
    const float *numbers = NULL;
    float log_probs[3];
    size_t n = 77;
    char byte = 0;
    uint32_t token = 77;
    teeny_session *fork = NULL;
    teeny_session_stats stats;
    teeny_text piece = {NULL, 77};
    received got = nothing();
    EXPECT(teeny_session_feed(session, some, 3), TEENY_PANIC, "session");
    FAILS(teeny_session_decode(session, 1), TEENY_PANIC);
    FAILS(teeny_session_logits(session, &numbers, &n), TEENY_PANIC);
    FAILS(teeny_session_hidden(session, &numbers, &n), TEENY_PANIC);
    FAILS(teeny_session_sample(session, sampler, &token), TEENY_PANIC);
    FAILS(teeny_session_truncate(session, 1), TEENY_PANIC);
    FAILS(teeny_session_fork(session, &fork), TEENY_PANIC);
    FAILS(teeny_session_save(session, &byte, 1, &n), TEENY_PANIC);
    FAILS(teeny_session_score(session, some, 3, log_probs, 0, NULL, NULL), TEENY_PANIC);
    FAILS(teeny_session_get_stats(session, &stats, sizeof stats), TEENY_PANIC);
    FAILS(teeny_session_generate(session, NULL, "A", 1, NULL, receive, &got), TEENY_PANIC);
    FAILS(teeny_stream_next(stream, &piece), TEENY_PANIC);
    CHECK(teeny_session_position(session) == 0 && *teeny_last_error());
    CHECK(numbers == NULL && n == 77 && token == 77 && fork == NULL && piece.len == 77);
    CHECK(got.pieces == 0);
    OK(teeny_session_cancel(session, 1));
}

int main(int argc, char **argv) {
    teeny_model *model;
    teeny_session *session;
    teeny_session *other;
    teeny_sampler *sampler = NULL;
    teeny_stream *stream = NULL;
    teeny_text piece;
    received expected = nothing();
    received got = nothing();
    teeny_generate_options o;
    int i;
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    set_folder(argv[1]);
    o = generate_options();
    o.max_tokens = 20;
    model = load("model");
    OK(teeny_generate(model, "ABC", 3, NULL, &o, receive, &expected));
    FAILS(teeny_test_panic(NULL), TEENY_NULL_POINTER);
    for (i = 0; i < 100; i++) {
        session = fed(model, some, 3);
        other = fed(model, some, 3);
        MUST(teeny_sampler_new(NULL, &sampler));
        MUST(teeny_stream_new(session, NULL, "A", 1, NULL, &stream));
        if (i % 3 == 0) {
            EXPECT(teeny_test_panic(session), TEENY_PANIC, "fault in teeny");
        } else if (i % 3 == 1) {
            on_threads(on_another_thread, &session, sizeof session, 1);
        } else {
            /* A fault in a callback's call is that call's; the outer one goes on. */
            got = nothing();
            o.max_tokens = 1;
            OK(teeny_session_generate(other, NULL, NULL, 0, &o, fault_within, &session));
            o.max_tokens = 20;
            OK(teeny_session_truncate(other, 3));
        }
        refuses(session, sampler, stream);

        /* The rest works. */
        CHECK(IS_FED(other, model, some, 3));
        got = nothing();
        OK(teeny_generate(model, "ABC", 3, NULL, &o, receive, &got));
        CHECK(same_text(&expected, &got));
        if (i % 2 == 0) {
            OK(teeny_session_reset(session));
            CHECK(teeny_session_position(session) == 0);
            OK(teeny_session_feed(session, some, 3));
            CHECK(IS_FED(session, model, some, 3));
            OK(teeny_session_reset(session));
            got = nothing();
            OK(teeny_session_generate(session, sampler, "ABC", 3, &o, receive, &got));
            CHECK(same_text(&expected, &got));
            /* Its stream begins with the session as it is. */
            OK(teeny_stream_next(stream, &piece));
        }
        teeny_stream_free(stream);
        teeny_sampler_free(sampler);
        teeny_session_free(session);
        teeny_session_free(other);
    }
    teeny_model_free(model);
    CHECK(teeny_object_count() == 0);
    return failure_count() == 0 ? 0 : 1;
}
