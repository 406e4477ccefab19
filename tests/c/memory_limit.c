/* Calls that need more memory than the process may have: TEENY_OUT_OF_MEMORY, nothing changed, and
 * all goes on when there is memory again. Runs alone, because the limit is the process's. */
#include "check.h"

#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MIB = 1 << 20 };

/* Lets the process have this much more than it has now; 0 lifts the limit. */
static void limit(size_t more) {
    struct rlimit limits;
    FILE *statm = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    if (statm == NULL || fscanf(statm, "%lu", &pages) != 1 || getrlimit(RLIMIT_AS, &limits) != 0) {
        fprintf(stderr, "memory_limit.c: cannot find out how much memory there is\n");
        exit(1);
    }
    fclose(statm);
    limits.rlim_cur = more == 0 ? limits.rlim_max : (rlim_t)pages * 4096 + more;
    if (setrlimit(RLIMIT_AS, &limits) != 0) {
        fprintf(stderr, "memory_limit.c: cannot set the limit\n");
        exit(1);
    }
}

/* A failed call under a limit of so many MiB more; the message says what the memory was for. */
#define STARVED(mib, call)                                                                         \
    do {                                                                                           \
        teeny_status status;                                                                       \
        limit((size_t)(mib) * MIB);                                                                \
        status = call;                                                                             \
        if (status != TEENY_OUT_OF_MEMORY) {                                                       \
            fprintf(stderr, "memory_limit.c:%d: %s\n  %s: %s\n", __LINE__, #call,                  \
                    teeny_status_name(status), teeny_last_error());                                \
        }                                                                                          \
        CHECK(status == TEENY_OUT_OF_MEMORY && strstr(teeny_last_error(), "memory") != NULL);      \
        limit(0);                                                                                  \
    } while (0)

static void no_release(void *user_data, const void *data, size_t len) {
    (void)user_data;
    (void)data;
    (void)len;
    CHECK(!"released");
}

static void big_models(const teeny_model *deep, const uint32_t *tokens) {
    teeny_model_options o = model_options();
    teeny_model *model = NULL;
    teeny_session *session = NULL;
    size_t len = 0;
    unsigned char *bytes = read_file(path_of("big"), &len);
    CHECK(len > 30 * MIB && deep != NULL);
    STARVED(16, teeny_model_load(path_of("big"), NULL, &model));
    o.map = 0;
    STARVED(16, teeny_model_load(path_of("big"), &o, &model));
    o.dtype = TEENY_DTYPE_F32;
    STARVED(60, teeny_model_load(path_of("big"), &o, &model));
    o = model_options();
    o.dtype = TEENY_DTYPE_F16;
    STARVED(16, teeny_model_load_memory(bytes, len, no_release, NULL, &o, &model));
    /* An odd address has to be copied. */
    memmove(bytes + 1, bytes, len);
    STARVED(16, teeny_model_load_memory(bytes + 1, len, no_release, NULL, NULL, &model));
    free(bytes);
    CHECK(model == NULL && teeny_object_count() == 1);

    MUST(teeny_model_load(path_of("big"), NULL, &model));
    /* The activations of so wide a layer. */
    STARVED(4, teeny_session_new(model, NULL, &session));
    CHECK(session == NULL && teeny_object_count() == 2);
    session = new_session(model);
    OK(teeny_session_decode(session, tokens[0]));
    teeny_session_free(session);
    teeny_model_free(model);
}

enum { MANY = 3000, PROMPT = 640 };

static int same_logits(const teeny_session *a, const teeny_session *b) {
    const float *x = NULL;
    const float *y = NULL;
    size_t len = 0;
    OK(teeny_session_logits(a, &x, &len));
    OK(teeny_session_logits(b, &y, &len));
    return len == VOCAB && x != NULL && y != NULL && same_floats(x, y, len);
}

static void long_sessions(const teeny_model *model, const uint32_t *tokens) {
    teeny_session_options o = session_options();
    teeny_session *session = NULL;
    teeny_session *other;
    size_t position;
    o.reserve = teeny_model_max_seq_len(model);
    STARVED(64, teeny_session_new(model, &o, &session));
    CHECK(session == NULL && teeny_object_count() == 1);

    /* What was fed until the memory was used up stays. */
    session = new_session(model);
    STARVED(8, teeny_session_feed(session, tokens, MANY));
    position = teeny_session_position(session);
    CHECK(position > 0 && position < MANY);
    other = fed(model, tokens, position);
    CHECK(same_logits(session, other));
    OK(teeny_session_feed(session, tokens + position, 70));
    OK(teeny_session_feed(other, tokens + position, 70));
    CHECK(same_logits(session, other));
    teeny_session_free(session);
    teeny_session_free(other);
}

static void forks(const teeny_model *model, const uint32_t *tokens) {
    enum { CHILDREN = 40 };
    teeny_session *parent = fed(model, tokens, PROMPT - 3);
    teeny_session *children[CHILDREN] = {NULL};
    teeny_session *fresh = fed(model, tokens, PROMPT - 3);
    teeny_status status = TEENY_OK;
    int n = 0;
    int i;
    for (i = 0; i < CHILDREN; i++) {
        MUST(teeny_session_fork(parent, &children[i]));
    }
    /* Each child's first token copies the page that it shares. */
    limit(4 * MIB);
    for (n = 0; n < CHILDREN && status == TEENY_OK; n++) {
        status = teeny_session_decode(children[n], tokens[PROMPT - 3]);
    }
    CHECK(status == TEENY_OUT_OF_MEMORY && n > 1);
    n--;
    CHECK(teeny_session_position(children[n]) == PROMPT - 3);
    limit(0);
    CHECK(same_logits(children[n], parent) && same_logits(parent, fresh));
    OK(teeny_session_decode(fresh, tokens[PROMPT - 3]));
    CHECK(same_logits(children[0], fresh));
    OK(teeny_session_decode(children[n], tokens[PROMPT - 3]));
    CHECK(same_logits(children[n], fresh));
    for (i = 0; i < CHILDREN; i++) {
        teeny_session_free(children[i]);
    }
    teeny_session_free(parent);
    teeny_session_free(fresh);
}

static void restoring(const teeny_model *model, const uint32_t *tokens) {
    teeny_session *session = fed(model, tokens, PROMPT);
    teeny_session *victim = fed(model, tokens + 3, 5);
    teeny_session *fresh = fed(model, tokens + 3, 5);
    size_t len = 0;
    unsigned char *data;
    char path[4096];
    snprintf(path, sizeof path, "%s", path_of("saved"));
    OK(teeny_session_save(session, NULL, 0, &len));
    CHECK(len > 4 * MIB);
    data = malloc(len);
    if (data == NULL) {
        exit(1);
    }
    OK(teeny_session_save(session, data, len, &len));
    OK(teeny_session_save_file(session, path));
    STARVED(2, teeny_session_restore(victim, data, len));
    CHECK(teeny_session_position(victim) == 5 && same_logits(victim, fresh));
    STARVED(2, teeny_session_restore_file(victim, path));
    CHECK(teeny_session_position(victim) == 5 && same_logits(victim, fresh));
    OK(teeny_session_decode(victim, 9));
    OK(teeny_session_decode(fresh, 9));
    CHECK(same_logits(victim, fresh));
    OK(teeny_session_restore(victim, data, len));
    CHECK(teeny_session_position(victim) == PROMPT && same_logits(victim, session));
    OK(teeny_session_restore_file(fresh, path));
    CHECK(same_logits(fresh, session));
    remove(path);
    free(data);
    teeny_session_free(session);
    teeny_session_free(victim);
    teeny_session_free(fresh);
}

/* Texts longer than what is left, and a generation that goes on until nothing is left. */
static void long_texts(const teeny_model *model, const uint32_t *unused) {
    const size_t len = 8 * MIB;
    char *text = malloc(len);
    uint32_t *tokens = calloc(len, sizeof *tokens);
    teeny_generate_options o = generate_options();
    teeny_session *session = new_session(model);
    received got = nothing();
    size_t n = 77;
    int before;
    (void)unused;
    if (text == NULL || tokens == NULL) {
        exit(1);
    }
    memset(text, 'A', len);
    STARVED(4, teeny_model_encode(model, text, len, tokens, len, &n));
    CHECK(n == 77);
    STARVED(4, teeny_session_generate(session, NULL, text, len, NULL, receive, &got));
    STARVED(4, teeny_generate(model, text, len, NULL, NULL, receive, &got));
    o.max_tokens = teeny_model_max_seq_len(model);
    STARVED(16, teeny_session_generate(session, NULL, "A", 1, &o, receive, &got));
    /* What was handed out is in the session, which goes on when there is memory again. */
    CHECK(got.pieces > 0 && teeny_session_position(session) == (size_t)got.pieces + 1);
    before = got.pieces;
    o.max_tokens = 300;
    OK(teeny_session_generate(session, NULL, NULL, 0, &o, receive, &got));
    CHECK(got.pieces == before + 300);
    CHECK(teeny_session_position(session) == (size_t)got.pieces + 1);
    teeny_session_free(session);
    free(text);
    free(tokens);
}

/* In a process of its own, which has no memory of earlier calls to use again. */
static void alone(void (*part)(const teeny_model *, const uint32_t *)) {
    static uint32_t tokens[MANY];
    int status = 0;
    const pid_t child = fork();
    if (child == 0) {
        teeny_model *model = load("deep");
        /* Large memory that is freed goes back to the system. */
        mallopt(M_MMAP_THRESHOLD, 128 << 10);
        random_tokens(tokens, MANY, 71);
        part(model, tokens);
        teeny_model_free(model);
        _exit(failure_count() == 0 && teeny_object_count() == 0 ? 0 : 1);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void memory_limit_group(void) {
    alone(big_models);
    alone(long_sessions);
    alone(forks);
    alone(restoring);
    alone(long_texts);
}
