/* allocation FOLDER: memory that is refused, at each place where teeny asks for it.
 *
 * Linked with the static library and --wrap, so that the library's allocations come here. Each call
 * is repeated with its first large allocation failing, then its second, until none is left: always
 * TEENY_OUT_OF_MEMORY, nothing changed, and the next try succeeds. Then with every allocation
 * failing, and every one from the second on, and so forth, small ones too: it may succeed then from
 * the library's reserve, but nothing else. Each kind of call has a process of its own, so that one
 * that ends its process is told apart.
 */
#include "check.h"

#include <sys/wait.h>
#include <unistd.h>

/* What the library has a reserve for is not larger. */
enum { LARGE = (16 << 10) + 1 };

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
int __real_posix_memalign(void **out, size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
int __wrap_posix_memalign(void **out, size_t alignment, size_t size);

static enum { OFF, ONE_LARGE, ALL_FROM } armed;
static int fail_at; /* Which allocation is refused, from 1 on. */
static int seen;    /* How many there were. */

static int refuse(size_t size) {
    switch (armed) {
    case ONE_LARGE:
        return size >= LARGE && ++seen == fail_at;
    case ALL_FROM:
        return ++seen >= fail_at;
    case OFF:
        break;
    }
    return 0;
}

void *__wrap_malloc(size_t size) {
    return refuse(size) ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size) {
    return refuse(n * size) ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *old, size_t size) {
    return refuse(size) ? NULL : __real_realloc(old, size);
}

int __wrap_posix_memalign(void **out, size_t alignment, size_t size) {
    return refuse(size) ? 12 /* ENOMEM */ : __real_posix_memalign(out, alignment, size);
}

enum { LONG = 10000 };

static teeny_model *model;
static teeny_session *session; /* Fed with the first 100 tokens. */
static teeny_sampler *sampler;
static uint32_t tokens[LONG];
static char text[LONG];
static float numbers[LONG * 2];
static uint32_t top_tokens[LONG];
static float top_log_probs[LONG];
static unsigned char *bytes;
static size_t len;
static teeny_model *made_model;
static teeny_session *made_session;
static teeny_sampler *made_sampler;
static teeny_stream *made_stream;

static teeny_status load_with(int32_t map, int32_t dtype) {
    teeny_model_options o = model_options();
    o.map = map;
    o.dtype = dtype;
    return teeny_model_load(path_of("bf16"), &o, &made_model);
}

static teeny_status load_mapped(void) {
    return load_with(1, TEENY_DTYPE_AS_STORED);
}

static teeny_status load_read(void) {
    return load_with(0, TEENY_DTYPE_AS_STORED);
}

static teeny_status load_converted(void) {
    return load_with(1, TEENY_DTYPE_F32);
}

static teeny_status load_quantised(void) {
    return load_with(1, TEENY_DTYPE_Q4);
}

static teeny_status load_unaligned(void) {
    return teeny_model_load_memory(bytes + 1, len, NULL, NULL, NULL, &made_model);
}

static teeny_status make_session(void) {
    return teeny_session_new(model, NULL, &made_session);
}

static teeny_status make_reserved_session(void) {
    teeny_session_options o = session_options();
    o.reserve = SIZE_MAX;
    return teeny_session_new(model, &o, &made_session);
}

static teeny_status fork_session(void) {
    return teeny_session_fork(session, &made_session);
}

static teeny_status feed_one(void) {
    return teeny_session_decode(session, tokens[100]);
}

static teeny_status go_back(void) {
    return teeny_session_truncate(session, 90);
}

static teeny_status save(void) {
    static unsigned char out[1 << 20];
    size_t n = 0;
    return teeny_session_save(session, out, sizeof out, &n);
}

static teeny_status save_file(void) {
    return teeny_session_save_file(session, path_of("saved"));
}

static teeny_status restore(void) {
    return teeny_session_restore(session, bytes, len);
}

static teeny_status restore_file(void) {
    return teeny_session_restore_file(session, path_of("allocation"));
}

static teeny_status encode(void) {
    size_t n = 0;
    return teeny_model_encode(model, text, LONG, top_tokens, LONG, &n);
}

static teeny_status decode(void) {
    static char out[2 * LONG];
    size_t n = 0;
    return teeny_model_decode(model, tokens, LONG, out, sizeof out, &n);
}

static teeny_status score(void) {
    return teeny_session_score(session, tokens, 1, numbers, VOCAB, top_tokens, top_log_probs);
}

static teeny_status score_text(void) {
    teeny_score out;
    return teeny_score_text(model, text, LONG, &out, sizeof out);
}

static teeny_status generate(void) {
    received got = nothing();
    return teeny_generate(model, text, LONG, NULL, NULL, receive, &got);
}

static teeny_status make_stream(void) {
    return teeny_stream_new(session, sampler, text, LONG, NULL, &made_stream);
}

static teeny_status sample(void) {
    uint32_t token;
    return teeny_sampler_sample(sampler, numbers, LONG, &token);
}

static teeny_status accept(void) {
    teeny_status status = TEENY_OK;
    int i;
    for (i = 0; i < LONG && status == TEENY_OK; i++) {
        status = teeny_sampler_accept(sampler, 1);
    }
    return status;
}

static teeny_status clone(void) {
    return teeny_sampler_clone(sampler, &made_sampler);
}

static teeny_status bias(void) {
    static teeny_logit_bias biases[LONG];
    return teeny_sampler_add_logit_bias(sampler, biases, LONG);
}

static const struct operation {
    const char *name;
    teeny_status (*run)(void);
    size_t position; /* The session's afterwards. */
    int at_least;    /* Large allocations that it makes. */
} operations[] = {
    {"load mapped", load_mapped, 100, 0},
    {"load read", load_read, 100, 1},
    {"load converted", load_converted, 100, 1},
    {"load quantised", load_quantised, 100, 1},
    {"load unaligned", load_unaligned, 100, 1},
    {"new session", make_session, 100, 0},
    {"new reserved session", make_reserved_session, 100, 2},
    {"fork", fork_session, 100, 0},
    {"decode a token", feed_one, 101, 1},
    {"truncate", go_back, 90, 1},
    {"save", save, 100, 0},
    {"save to a file", save_file, 100, 1},
    {"restore", restore, 50, 1},
    {"restore from a file", restore_file, 50, 1},
    {"encode", encode, 100, 1},
    {"decode", decode, 100, 1},
    {"score", score, 101, 1},
    {"score a text", score_text, 100, 1},
    {"generate", generate, 100, 1},
    {"new stream", make_stream, 100, 1},
    {"sample", sample, 100, 1},
    {"accept", accept, 100, 0},
    {"clone", clone, 100, 1},
    {"logit bias", bias, 100, 1},
};

/* All that an operation may use, as if for the first time. The model is new too, so that no memory
 * of earlier calls hides an allocation. */
static void set_up(void) {
    teeny_session *other;
    int i;
    made_model = NULL;
    made_session = NULL;
    made_sampler = NULL;
    made_stream = NULL;
    model = load("model");
    session = fed(model, tokens, 100);
    /* Shares the pages, so that writing copies them. */
    OK(teeny_session_fork(session, &other));
    teeny_session_free(session);
    MUST(teeny_session_fork(other, &session));
    made_session = other;
    MUST(teeny_sampler_new_chain(0, &sampler));
    OK(teeny_sampler_add_penalties(sampler, 1 << 20, 1.1F, 0, 0));
    for (i = 0; i < 1500; i++) {
        OK(teeny_sampler_accept(sampler, 2));
    }
}

/* Whether the operation does what it should with the allocations from `fail_at` on, or one, failing;
 * `*last` if it did not get as far. */
static int attempt(const struct operation *o, int *last) {
    const int one = armed == ONE_LARGE;
    const int mode = one ? ONE_LARGE : ALL_FROM;
    teeny_session *other;
    teeny_status status;
    size_t count;
    armed = OFF;
    set_up();
    other = made_session;
    made_session = NULL;
    count = teeny_object_count();
    seen = 0;
    armed = mode;
    status = o->run();
    armed = OFF;
    *last = seen < fail_at;
    if (status != (one && !*last ? TEENY_OUT_OF_MEMORY : TEENY_OK) &&
        (one || *last || status != TEENY_OUT_OF_MEMORY)) {
        fprintf(stderr, "allocation.c: %s, %s %d refused of %d: %s: %s\n", o->name,
                one ? "large allocation" : "allocations from", fail_at, seen,
                teeny_status_name(status), teeny_last_error());
        return 0;
    }
    if (*last && one && seen < o->at_least) {
        fprintf(stderr, "allocation.c: %s: only %d large allocations\n", o->name, seen);
        return 0;
    }
    if (status != TEENY_OK) {
        CHECK(strstr(teeny_last_error(), "memory") != NULL);
        CHECK(teeny_object_count() == count);
        CHECK(made_model == NULL && made_session == NULL && made_sampler == NULL);
        CHECK(made_stream == NULL && IS_FED(session, model, tokens, 100));
        /* There is memory again. */
        OK(o->run());
    }
    CHECK(teeny_session_position(session) == o->position);
    teeny_session_free(other);
    teeny_model_free(made_model);
    teeny_session_free(made_session);
    teeny_sampler_free(made_sampler);
    teeny_stream_free(made_stream);
    teeny_sampler_free(sampler);
    teeny_session_free(session);
    teeny_model_free(model);
    CHECK(teeny_object_count() == 0);
    armed = mode;
    return failure_count() == 0;
}

static int run(const struct operation *o) {
    int last = 0;
    armed = ONE_LARGE;
    for (fail_at = 1; !last; fail_at++) {
        if (!attempt(o, &last)) {
            return 0;
        }
    }
    armed = ALL_FROM;
    last = 0;
    for (fail_at = 1; !last; fail_at += fail_at < 30 ? 1 : 1 + fail_at / 10) {
        if (!attempt(o, &last)) {
            return 0;
        }
    }
    armed = OFF;
    return 1;
}

/* What the restoring ones read: a session that holds the first 50 tokens. */
static void prepare(const struct operation *o) {
    unsigned char *copy;
    if (o->run == load_unaligned) {
        copy = read_file(path_of("bf16"), &len);
        bytes = malloc(len + 1);
        if (bytes == NULL) {
            exit(1);
        }
        memcpy(bytes + 1, copy, len);
        free(copy);
    } else if (o->run == restore || o->run == restore_file) {
        model = load("model");
        session = fed(model, tokens, 50);
        MUST(teeny_session_save_file(session, path_of("allocation")));
        bytes = read_file(path_of("allocation"), &len);
        teeny_session_free(session);
        teeny_model_free(model);
    }
}

int main(int argc, char **argv) {
    int sound = 1;
    size_t i;
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    set_folder(argv[1]);
    random_tokens(tokens, LONG, 81);
    memset(text, 'A', sizeof text);
    for (i = 0; i < LONG; i++) {
        numbers[i] = (float)(i % 10);
    }
    for (i = 0; i < sizeof operations / sizeof operations[0]; i++) {
        int status = 0;
        const pid_t child = fork();
        if (child == 0) {
            prepare(&operations[i]);
            _exit(run(&operations[i]) ? 0 : 1);
        }
        if (child < 0 || waitpid(child, &status, 0) != child) {
            perror("allocation.c");
            return 1;
        }
        if (!WIFEXITED(status)) {
            fprintf(stderr, "allocation.c: %s ended the process\n", operations[i].name);
        }
        sound &= WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    return sound ? 0 : 1;
}
