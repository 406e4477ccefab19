/* Threads that share a model, which has threads too: each text is that of a single thread. */
#include "check.h"

enum { THREADS = 8, TEXTS = 25 };

static teeny_model *shared;
static received expected[TEXTS];

/* One of several ways from a prompt to a text; all give the same. */
static received text_of(int which, int way) {
    static const char prompt[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const size_t len = 1 + (size_t)which % 26;
    received got = nothing();
    teeny_sampler_options s = sampler_options();
    teeny_generate_options o = generate_options();
    s.seed = (uint64_t)which;
    o.max_tokens = 20;
    if (way == 0) {
        OK(teeny_generate(shared, prompt, len, &s, &o, receive, &got));
    } else {
        teeny_session *session = new_session(shared);
        teeny_session *fork = NULL;
        teeny_sampler *sampler = NULL;
        MUST(teeny_sampler_new(&s, &sampler));
        if (way == 1) {
            OK(teeny_session_generate(session, sampler, prompt, len, &o, receive, &got));
        } else {
            /* Half by the parent, half by its child, who outlives it. */
            o.max_tokens = 10;
            OK(teeny_session_generate(session, sampler, prompt, len, &o, receive, &got));
            MUST(teeny_session_fork(session, &fork));
            teeny_session_free(session);
            session = fork;
            OK(teeny_session_generate(session, sampler, NULL, 0, &o, receive, &got));
        }
        teeny_session_free(session);
        teeny_sampler_free(sampler);
    }
    return got;
}

typedef struct worker {
    int number;
    int wrong;
} worker;

static void *work(void *argument) {
    worker *mine = argument;
    const int n = quick ? 12 : 200;
    int i;
    CHECK(strcmp(teeny_last_error(), "") == 0);
    for (i = 0; i < n; i++) {
        const int which = (mine->number * 7 + i) % TEXTS;
        received got = text_of(which, i % 3);
        mine->wrong += !same_text(&expected[which], &got);
    }
    /* The other threads' failures are theirs. */
    if (mine->number % 2) {
        CHECK(teeny_model_vocab_size(NULL) == 0 && *teeny_last_error());
    } else {
        CHECK(teeny_abi_version() == TEENY_ABI_VERSION && !*teeny_last_error());
    }
    return NULL;
}

void stress_group(void) {
    worker workers[THREADS];
    teeny_model_options options = model_options();
    int i;
    shared = load("model");
    for (i = 0; i < TEXTS; i++) {
        expected[i] = text_of(i, 0);
        CHECK(expected[i].pieces == 20);
    }
    teeny_model_free(shared);
    options.threads = 3;
    MUST(teeny_model_load(path_of("model"), &options, &shared));
    for (i = 0; i < THREADS; i++) {
        workers[i].number = i;
        workers[i].wrong = 0;
    }
    on_threads(work, workers, sizeof workers[0], THREADS);
    for (i = 0; i < THREADS; i++) {
        CHECK(workers[i].wrong == 0);
    }
    teeny_model_free(shared);
}
