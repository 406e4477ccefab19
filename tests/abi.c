/* What teeny.h promises, checked from C: abi MODEL FOREIGN N_PARAMS
 *
 * MODEL knows the 200 characters from 'A' on and has a context of 24; FOREIGN is some other file.
 * Says nothing if all is well. abi.rs builds and runs it.
 */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "teeny.h"

static int failures;

/* A name of this file for the failed check, with what the library says. */
#define CHECK(condition) check(condition, #condition, __LINE__)

static void check(int condition, const char *text, int line) {
    if (!condition) {
        fprintf(stderr, "abi.c:%d: not so: %s\n  last error: %s\n", line, text, teeny_last_error());
        failures++;
    }
}

/* The call gave this status, and a message with this part, or none for success. */
#define EXPECT(call, status, part) expect(call, status, part, #call, __LINE__)

static void expect(teeny_status found, teeny_status status, const char *part, const char *call,
                   int line) {
    const char *message = teeny_last_error();
    int fits = *part ? strstr(message, part) != NULL : !*message;
    if (found != status || !fits) {
        fprintf(stderr, "abi.c:%d: %s\n  status %d, expected %d\n  message: %s\n  expected: %s\n",
                line, call, (int)found, (int)status, message, part);
        failures++;
    }
}

/* What a callback has received. */
typedef struct received {
    char text[4096];
    size_t len;
    int pieces;
    int whole;      /* No piece began inside of a character. */
    int stop_after; /* Pieces after which to stop; 0 for never. */
} received;

static int32_t receive(void *user_data, const char *text, size_t len) {
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

static received nothing(void) {
    received empty;
    memset(&empty, 0, sizeof empty);
    empty.whole = 1;
    return empty;
}

static int same(const received *a, const received *b) {
    return a->len == b->len && memcmp(a->text, b->text, a->len) == 0;
}

static teeny_generate_options defaults(void) {
    teeny_generate_options options;
    EXPECT(teeny_generate_options_init(&options, sizeof options), TEENY_OK, "");
    return options;
}

static void versions(void) {
    CHECK(strcmp(teeny_last_error(), "") == 0);
    CHECK(teeny_abi_version() == TEENY_ABI_VERSION);
    CHECK(strchr(teeny_version(), '.') != NULL);
}

static void loading(const char *path, const char *foreign, size_t n_params) {
    teeny_model *const untouched = (teeny_model *)&failures;
    teeny_model *model = untouched;

    EXPECT(teeny_model_load(NULL, &model), TEENY_NULL_POINTER, "path: found NULL");
    EXPECT(teeny_model_load(path, NULL), TEENY_NULL_POINTER, "out: found NULL");
    EXPECT(teeny_model_load("nowhere.safetensors", &model), TEENY_IO, "nowhere.safetensors");
    EXPECT(teeny_model_load(".", &model), TEENY_IO, "folder");
    EXPECT(teeny_model_load("", &model), TEENY_IO, "cannot open model");
    EXPECT(teeny_model_load(foreign, &model), TEENY_FORMAT, "model file: header");
    EXPECT(teeny_model_load("\xff.safetensors", &model), TEENY_INVALID_ARGUMENT,
           "path: found byte 0xff at 0, expected UTF-8");
    CHECK(model == untouched);

    /* The message stays until the next call that is more than a question for it or a version. */
    CHECK(strstr(teeny_last_error(), "0xff") != NULL && *teeny_version() && teeny_abi_version());
    CHECK(strstr(teeny_last_error(), "0xff") != NULL);
    teeny_model_free(NULL);
    CHECK(strcmp(teeny_last_error(), "") == 0);

    EXPECT(teeny_model_load(path, &model), TEENY_OK, "");
    CHECK(model != untouched && model != NULL);
    CHECK(teeny_model_vocab_size(model) == 200);
    CHECK(teeny_model_max_seq_len(model) == 24);
    CHECK(teeny_model_n_params(model) == n_params);
    teeny_model_free(model);

    CHECK(teeny_model_vocab_size(NULL) == 0 && strstr(teeny_last_error(), "model: found NULL"));
    CHECK(teeny_model_max_seq_len(NULL) == 0 && strstr(teeny_last_error(), "model: found NULL"));
    CHECK(teeny_model_n_params(NULL) == 0 && strstr(teeny_last_error(), "model: found NULL"));
}

/* The options of a later header. */
typedef struct newer_options {
    teeny_generate_options options;
    size_t later;
} newer_options;

static void initialising(void) {
    teeny_generate_options options;
    teeny_generate_options before;
    newer_options newer;
    memset(&options, 7, sizeof options);
    before = options;

    EXPECT(teeny_generate_options_init(NULL, sizeof options), TEENY_NULL_POINTER, "options");
    EXPECT(teeny_generate_options_init(&options, 0), TEENY_INVALID_ARGUMENT, "size: found 0");
    EXPECT(teeny_generate_options_init(&options, sizeof options - 1), TEENY_INVALID_ARGUMENT,
           "expected sizeof(teeny_generate_options)");
    EXPECT(teeny_generate_options_init(&options, SIZE_MAX), TEENY_INVALID_ARGUMENT, "size");
    CHECK(memcmp(&options, &before, sizeof options) == 0);

    options = defaults();
    CHECK(options.size == sizeof options && options.max_tokens == 256);
    CHECK(options.stop == NULL && options.n_stop == 0);
    CHECK(options.top_k == 40 && options.seed == 0);
    CHECK(options.temperature == 0.8F && options.top_p == 0.95F && options.min_p == 0.05F);
    CHECK(options.repeat_penalty == 1.0F && options.repeat_last_n == 64);
    CHECK(options.overflow == TEENY_OVERFLOW_SLIDE);

    memset(&newer, 7, sizeof newer);
    EXPECT(teeny_generate_options_init(&newer.options, sizeof newer), TEENY_OK, "");
    CHECK(newer.options.size == sizeof newer && newer.later == 0);
}

/* Arguments that are refused before any text is generated. */
static void refusing(const teeny_model *model) {
    received got = nothing();
    teeny_generate_options options = defaults();
    newer_options newer;
    teeny_text stop[2] = {{"A", 1}, {NULL, 1}};
    char unaligned[sizeof options + 16] = {0};

#define GENERATE(prompt, len) teeny_generate(model, prompt, len, &options, receive, &got)
    EXPECT(teeny_generate(NULL, "A", 1, NULL, receive, &got), TEENY_NULL_POINTER, "model: found");
    EXPECT(teeny_generate(model, NULL, 1, NULL, receive, &got), TEENY_NULL_POINTER, "prompt: ");
    EXPECT(teeny_generate(model, NULL, 0, NULL, receive, &got), TEENY_NULL_POINTER, "prompt: ");
    EXPECT(teeny_generate(model, "A", 1, NULL, NULL, &got), TEENY_NULL_POINTER, "callback: found");

    EXPECT(GENERATE("", 0), TEENY_INVALID_ARGUMENT, "prompt: found no text");
    EXPECT(GENERATE("A", SIZE_MAX), TEENY_INVALID_ARGUMENT, "prompt: found length");
    EXPECT(GENERATE("A\xff", 2), TEENY_INVALID_ARGUMENT,
           "prompt: found byte 0xff at 1, expected UTF-8");
    EXPECT(GENERATE("A\xc3\xa9", 2), TEENY_INVALID_ARGUMENT, "prompt: found byte 0xc3 at 1");
    EXPECT(GENERATE("AB1C", 4), TEENY_TOKENIZER, "'1' (U+0031) at byte 2");
    EXPECT(GENERATE("A\0B", 3), TEENY_TOKENIZER, "(U+0000) at byte 1");

    options.size = 0;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "options.size: found 0, expected sizeof");
    options.size = sizeof options - 1;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "options.size");
    options.size = SIZE_MAX;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "options.size");
    EXPECT(teeny_generate(model, "A", 1, (teeny_generate_options *)(void *)(unaligned + 1), receive,
                          &got),
           TEENY_INVALID_ARGUMENT, "options: found address");

    newer.options = defaults();
    newer.options.size = sizeof newer;
    newer.later = 1;
    EXPECT(teeny_generate(model, "A", 1, &newer.options, receive, &got), TEENY_INVALID_ARGUMENT,
           "older than the program's teeny.h");

    options = defaults();
    options.temperature = NAN;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "temperature: found NaN");
    options = defaults();
    options.temperature = -1;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "temperature: found -1");
    options = defaults();
    options.top_p = 0;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "top_p: found 0");
    options = defaults();
    options.min_p = 2;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "min_p: found 2");
    options = defaults();
    options.repeat_penalty = 0;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "repeat_penalty: found 0");
    options = defaults();
    options.overflow = 3;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "options.overflow: found 3");

    options = defaults();
    options.n_stop = 2;
    EXPECT(GENERATE("A", 1), TEENY_NULL_POINTER, "options.stop: found NULL");
    options.stop = stop;
    EXPECT(GENERATE("A", 1), TEENY_NULL_POINTER, "options.stop[1]: found NULL");
    stop[1].data = "\xff";
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "options.stop[1]: found byte 0xff at 0");
    options.n_stop = SIZE_MAX;
    EXPECT(GENERATE("A", 1), TEENY_INVALID_ARGUMENT, "options.stop: found length");
#undef GENERATE
    CHECK(got.pieces == 0);
}

static received generated(const teeny_model *model, const teeny_generate_options *options) {
    received got = nothing();
    /* The prompt is "ABC": text needs no zero byte at its end. */
    EXPECT(teeny_generate(model, "ABC1", 3, options, receive, &got), TEENY_OK, "");
    CHECK(got.whole);
    return got;
}

static void generating(const teeny_model *model) {
    teeny_generate_options options = defaults();
    newer_options newer;
    received standard = generated(model, NULL);
    received got = generated(model, &options);
    teeny_text stop[2];
    size_t at;

    CHECK(standard.pieces == 256 && same(&standard, &got));
    options.seed = 1;
    got = generated(model, &options);
    CHECK(!same(&standard, &got));

    options = defaults();
    options.max_tokens = 0;
    got = generated(model, &options);
    CHECK(got.pieces == 0);
    options.max_tokens = 30;
    got = generated(model, &options);
    CHECK(got.pieces == 30 && memcmp(got.text, standard.text, got.len) == 0);

    memset(&newer, 0, sizeof newer);
    EXPECT(teeny_generate_options_init(&newer.options, sizeof newer), TEENY_OK, "");
    got = generated(model, &newer.options);
    CHECK(same(&standard, &got));

    /* The text ends before the character at byte 40, or where the same one came earlier. */
    at = ((unsigned char)standard.text[40] & 0xC0) == 0x80 ? 41 : 40;
    stop[0].data = "never to be found";
    stop[0].len = strlen(stop[0].data);
    stop[1].data = standard.text + at;
    stop[1].len = (unsigned char)standard.text[at] < 0x80 ? 1 : 2;
    options = defaults();
    options.stop = stop;
    options.n_stop = 2;
    got = generated(model, &options);
    CHECK(got.len <= at && memcmp(got.text, standard.text, got.len) == 0);
    CHECK(memcmp(standard.text + got.len, stop[1].data, stop[1].len) == 0);

    /* A context of 24: 3 of the prompt, 21 of ours, and one more that need not be fed. */
    options = defaults();
    options.overflow = TEENY_OVERFLOW_STOP;
    got = generated(model, &options);
    CHECK(got.pieces == 22 && memcmp(got.text, standard.text, got.len) == 0);
    options.overflow = TEENY_OVERFLOW_ERROR;
    got = nothing();
    EXPECT(teeny_generate(model, "ABC", 3, &options, receive, &got), TEENY_CONTEXT_FULL,
           "context full");
    CHECK(got.pieces == 22);
    EXPECT(teeny_generate(model, "AAAAAAAAAAAAAAAAAAAAAAAAA", 25, &options, receive, &got),
           TEENY_CONTEXT_FULL, "max_seq_len = 24");

    /* Without an end, until the callback has enough. */
    options = defaults();
    options.max_tokens = SIZE_MAX;
    got = nothing();
    got.stop_after = 300;
    EXPECT(teeny_generate(model, "ABC", 3, &options, receive, &got), TEENY_CANCELLED,
           "the callback returned 42");
    CHECK(got.pieces == 300 && memcmp(got.text, standard.text, standard.len) == 0);
}

/* A callback that calls teeny, where that fails. */
static int32_t call_again(void *user_data, const char *text, size_t len) {
    teeny_model *none = NULL;
    (void)text;
    (void)len;
    EXPECT(teeny_model_load("nowhere.safetensors", &none), TEENY_IO, "nowhere");
    CHECK(teeny_model_vocab_size(user_data) == 200);
    EXPECT(teeny_model_load("nowhere.safetensors", &none), TEENY_IO, "nowhere");
    return 0;
}

static void nesting(teeny_model *model) {
    teeny_generate_options options = defaults();
    options.max_tokens = 3;
    EXPECT(teeny_generate(model, "A", 1, &options, call_again, model), TEENY_OK, "");
}

typedef struct job {
    const teeny_model *model;
    received got;
    int quiet; /* No other thread's failure was seen. */
} job;

static void *work(void *argument) {
    job *mine = argument;
    teeny_status status;
    mine->quiet = strcmp(teeny_last_error(), "") == 0;
    status = teeny_generate(mine->model, "ABC", 3, NULL, receive, &mine->got);
    mine->quiet &= status == TEENY_OK && strcmp(teeny_last_error(), "") == 0;
    return NULL;
}

static void threads(const teeny_model *model) {
    enum { N = 4 };
    pthread_t thread[N];
    job jobs[N];
    received alone = generated(model, NULL);
    int i;

    CHECK(teeny_model_vocab_size(NULL) == 0);
    for (i = 0; i < N; i++) {
        jobs[i].model = model;
        jobs[i].got = nothing();
        CHECK(pthread_create(&thread[i], NULL, work, &jobs[i]) == 0);
    }
    for (i = 0; i < N; i++) {
        CHECK(pthread_join(thread[i], NULL) == 0);
        CHECK(jobs[i].quiet && same(&alone, &jobs[i].got));
    }
    CHECK(strstr(teeny_last_error(), "model: found NULL") != NULL);
}

int main(int argc, char **argv) {
    teeny_model *model = NULL;
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL FOREIGN N_PARAMS\n", argv[0]);
        return 2;
    }
    versions();
    loading(argv[1], argv[2], strtoul(argv[3], NULL, 10));
    initialising();
    EXPECT(teeny_model_load(argv[1], &model), TEENY_OK, "");
    if (model != NULL) {
        refusing(model);
        generating(model);
        nesting(model);
        threads(model);
    }
    teeny_model_free(model);
    return failures == 0 ? 0 : 1;
}
