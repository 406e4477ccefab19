/* What the C tests share: see check.h. */
#include "check.h"

int quick;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int failures;

static void failed(void) {
    pthread_mutex_lock(&lock);
    failures++;
    pthread_mutex_unlock(&lock);
}

int failure_count(void) {
    int n;
    pthread_mutex_lock(&lock);
    n = failures;
    pthread_mutex_unlock(&lock);
    return n;
}

int check(int condition, const char *text, const char *file, int line) {
    if (!condition) {
        fprintf(stderr, "%s:%d: not so: %s\n  last error: %s\n", file, line, text,
                teeny_last_error());
        failed();
    }
    return condition;
}

int expect(teeny_status found, teeny_status status, const char *part, const char *call,
           const char *file, int line) {
    const char *message = teeny_last_error();
    int fits = part == NULL ? *message != '\0'
               : *part      ? strstr(message, part) != NULL
                            : *message == '\0';
    if (found == status && fits) {
        return 1;
    }
    fprintf(stderr, "%s:%d: %s\n  %s, expected %s\n  message: %s\n  expected: %s\n", file, line,
            call, teeny_status_name(found), teeny_status_name(status), message,
            part == NULL ? "some message" : part);
    failed();
    return 0;
}

void must(teeny_status found, const char *call, const char *file, int line) {
    if (!expect(found, TEENY_OK, "", call, file, line)) {
        exit(1);
    }
}

static char folder[3000];

void set_folder(const char *path) {
    snprintf(folder, sizeof folder, "%s", path);
}

const char *path_of(const char *name) {
    static char paths[4][4096];
    static int next;
    char *path;
    pthread_mutex_lock(&lock);
    path = paths[next];
    next = (next + 1) % 4;
    pthread_mutex_unlock(&lock);
    snprintf(path, sizeof paths[0], "%s/%s.safetensors", folder, name);
    return path;
}

teeny_model *load(const char *name) {
    teeny_model *model = NULL;
    MUST(teeny_model_load(path_of(name), NULL, &model));
    return model;
}

teeny_session *new_session_with(const teeny_model *model, int32_t overflow) {
    teeny_session *session = NULL;
    teeny_session_options options = session_options();
    options.overflow = overflow;
    MUST(teeny_session_new(model, &options, &session));
    return session;
}

teeny_session *new_session(const teeny_model *model) {
    teeny_session *session = NULL;
    MUST(teeny_session_new(model, NULL, &session));
    return session;
}

teeny_session *fed(const teeny_model *model, const uint32_t *tokens, size_t n) {
    teeny_session *session = new_session(model);
    MUST(teeny_session_feed(session, tokens, n));
    return session;
}

unsigned char *read_file(const char *path, size_t *len) {
    FILE *file = fopen(path, "rb");
    unsigned char *bytes = NULL;
    long size = 0;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    rewind(file);
    bytes = malloc((size_t)size + 1);
    if (bytes == NULL || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    fclose(file);
    *len = (size_t)size;
    return bytes;
}

uint32_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return (uint32_t)(z >> 32);
}

void random_tokens(uint32_t *tokens, size_t n, uint64_t seed) {
    size_t i;
    for (i = 0; i < n; i++) {
        tokens[i] = random_bits(&seed) % VOCAB;
    }
}

int same_floats(const float *a, const float *b, size_t n) {
    return memcmp(a, b, n * sizeof *a) == 0;
}

state state_of(const teeny_session *session) {
    state found;
    const float *numbers = NULL;
    size_t len = 0;
    memset(&found, 0, sizeof found);
    found.position = teeny_session_position(session);
    if (found.position > 0 && OK(teeny_session_logits(session, &numbers, &len)) &&
        CHECK(len == VOCAB)) {
        memcpy(found.logits, numbers, sizeof found.logits);
    }
    if (found.position > 0 && OK(teeny_session_hidden(session, &numbers, &len)) &&
        CHECK(len == N_EMBD)) {
        memcpy(found.hidden, numbers, sizeof found.hidden);
    }
    return found;
}

int same_state(const state *a, const state *b) {
    return a->position == b->position && same_floats(a->logits, b->logits, VOCAB) &&
           same_floats(a->hidden, b->hidden, N_EMBD);
}

int is_fed(const teeny_session *session, const teeny_model *model, const uint32_t *tokens, size_t n,
           const char *file, int line) {
    teeny_session *fresh = new_session(model);
    state found;
    state expected;
    int same;
    if (n > 0) {
        MUST(teeny_session_feed(fresh, tokens, n));
    }
    expected = state_of(fresh);
    found = state_of(session);
    teeny_session_free(fresh);
    same = same_state(&found, &expected);
    if (!same) {
        fprintf(stderr, "%s:%d: position %lu, logits %g %g...\n  expected %lu, %g %g...\n", file,
                line, (unsigned long)found.position, found.logits[0], found.logits[1],
                (unsigned long)expected.position, expected.logits[0], expected.logits[1]);
        failed();
    }
    return same;
}

int32_t receive(void *user_data, const char *text, size_t len) {
    received *to = user_data;
    if (to->len + len > sizeof to->text) {
        return -1;
    }
    to->whole &= len > 0 && ((unsigned char)text[0] & 0xC0) != 0x80;
    memcpy(to->text + to->len, text, len);
    to->len += len;
    to->pieces++;
    return to->pieces == to->stop_after ? 42 : 0;
}

received nothing(void) {
    received empty;
    memset(&empty, 0, sizeof empty);
    empty.whole = 1;
    return empty;
}

int same_text(const received *a, const received *b) {
    return a->len == b->len && memcmp(a->text, b->text, a->len) == 0;
}

#define DEFAULTS(name)                                                                             \
    teeny_##name name(void) {                                                                      \
        teeny_##name options;                                                                      \
        MUST(teeny_##name##_init(&options, sizeof options));                                       \
        return options;                                                                            \
    }
DEFAULTS(model_options)
DEFAULTS(session_options)
DEFAULTS(sampler_options)
DEFAULTS(generate_options)

void *made_up(uintptr_t bits) {
    return (void *)bits;
}

void on_threads(void *(*call)(void *), void *arguments, size_t size, int n) {
    pthread_t threads[64];
    int i;
    for (i = 0; i < n; i++) {
        if (pthread_create(&threads[i], NULL, call, (char *)arguments + size * (size_t)i) != 0) {
            fprintf(stderr, "no thread %d\n", i);
            exit(1);
        }
    }
    for (i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
}
