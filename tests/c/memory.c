/* Models from the caller's memory: where it is used, when it is released, what is wrong with it. */
#include "check.h"

typedef struct released {
    int times;
    const void *data;
    size_t len;
    pthread_t thread;
    int frees; /* Gives the memory back, as a caller does. */
} released;

static void release(void *user_data, const void *data, size_t len) {
    released *r = user_data;
    r->times++;
    r->data = data;
    r->len = len;
    r->thread = pthread_self();
    /* It may call teeny. */
    CHECK(teeny_model_vocab_size(NULL) == 0);
    (void)teeny_object_count();
    if (r->frees) {
        /* Whoever reads it later is seen by valgrind. */
        free((void *)(uintptr_t)data);
    }
}

static int works(const teeny_model *model, const teeny_model *expected) {
    static const uint32_t tokens[] = {1, 2, 3, 4};
    teeny_session *session = fed(model, tokens, 4);
    const int same = IS_FED(session, expected, tokens, 4);
    teeny_session_free(session);
    return same;
}

static void refusing(const unsigned char *bytes, size_t len) {
    teeny_model *const untouched = made_up(7);
    teeny_model *model = untouched;
    teeny_model_options o = model_options();
    released r;
    char unaligned[2 * sizeof model] = {0};
    memset(&r, 0, sizeof r);
    EXPECT(teeny_model_load_memory(NULL, len, release, &r, NULL, &model), TEENY_NULL_POINTER,
           "data: found NULL");
    EXPECT(teeny_model_load_memory(bytes, len, release, &r, NULL, NULL), TEENY_NULL_POINTER,
           "out: found NULL");
    FAILS(teeny_model_load_memory(bytes, len, release, &r, NULL, (void *)(unaligned + 1)),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_model_load_memory(bytes, SIZE_MAX, release, &r, NULL, &model),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_model_load_memory(bytes, 0, release, &r, NULL, &model), TEENY_FORMAT);
    FAILS(teeny_model_load_memory("#!/bin/sh\necho no model\n", 24, release, &r, NULL, &model),
          TEENY_FORMAT);
    o.device = "cuda";
    FAILS(teeny_model_load_memory(bytes, len, release, &r, &o, &model), TEENY_UNSUPPORTED);
    o.size = 3;
    FAILS(teeny_model_load_memory(bytes, len, release, &r, &o, &model), TEENY_INVALID_ARGUMENT);
    CHECK(model == untouched && r.times == 0 && teeny_object_count() == 0);
}

static unsigned char *copy_at(const unsigned char *bytes, size_t len, size_t offset,
                              unsigned char **begin) {
    *begin = malloc(len + offset + 1);
    if (*begin == NULL) {
        exit(1);
    }
    memcpy(*begin + offset, bytes, len);
    return *begin + offset;
}

static int32_t stop_at_once(void *user_data, float done) {
    (void)user_data;
    (void)done;
    return 1;
}

static void cancelled(const unsigned char *bytes, size_t len) {
    teeny_model *model = NULL;
    teeny_model_options o = model_options();
    released r;
    int dtype;
    memset(&r, 0, sizeof r);
    o.progress = stop_at_once;
    for (dtype = TEENY_DTYPE_AS_STORED; dtype <= TEENY_DTYPE_Q4; dtype++) {
        size_t offset;
        o.dtype = dtype;
        for (offset = 0; offset < 2; offset++) {
            unsigned char *begin;
            unsigned char *data = copy_at(bytes, len, offset, &begin);
            FAILS(teeny_model_load_memory(data, len, release, &r, &o, &model), TEENY_CANCELLED);
            free(begin);
        }
    }
    CHECK(model == NULL && r.times == 0 && teeny_object_count() == 0);
}

static void *free_session(void *session) {
    teeny_session_free(*(teeny_session **)session);
    return NULL;
}

/* At a multiple of 4 the memory is used where it lies, until the last that needs it is gone. */
static void used_in_place(const unsigned char *bytes, size_t len, const teeny_model *expected) {
    size_t offset;
    for (offset = 0; offset <= 8; offset += 4) {
        unsigned char *begin;
        unsigned char *data = copy_at(bytes, len, offset, &begin);
        teeny_model *model = NULL;
        released r;
        memset(&r, 0, sizeof r);
        MUST(teeny_model_load_memory(data, len, release, &r, NULL, &model));
        CHECK(r.times == 0 && works(model, expected));
        CHECK(teeny_model_memory_used(model) == teeny_model_memory_used(expected));
        teeny_model_free(model);
        CHECK(r.times == 1 && r.data == data && r.len == len);
        CHECK(pthread_equal(r.thread, pthread_self()));
        teeny_model_free(model);
        CHECK(r.times == 1);
        free(begin);
    }
}

static void outlived_by_sessions(const unsigned char *bytes, size_t len,
                                 const teeny_model *expected) {
    static const uint32_t tokens[] = {9, 8, 7};
    unsigned char *begin;
    unsigned char *data = copy_at(bytes, len, 0, &begin);
    teeny_model *model = NULL;
    teeny_session *one;
    teeny_session *two = NULL;
    released r;
    memset(&r, 0, sizeof r);
    r.frees = 1;
    MUST(teeny_model_load_memory(data, len, release, &r, NULL, &model));
    one = new_session(model);
    teeny_model_free(model);
    CHECK(r.times == 0);
    OK(teeny_session_feed(one, tokens, 3));
    OK(teeny_session_fork(one, &two));
    teeny_session_free(one);
    CHECK(r.times == 0);
    CHECK(IS_FED(two, expected, tokens, 3));
    /* On whichever thread frees the last. */
    on_threads(free_session, &two, sizeof two, 1);
    CHECK(r.times == 1 && r.data == data && r.len == len);
    CHECK(!pthread_equal(r.thread, pthread_self()));
}

/* Elsewhere it is copied, and released before the load returns. */
static void copied(const unsigned char *bytes, size_t len, const teeny_model *expected) {
    size_t offset;
    for (offset = 1; offset < 4; offset++) {
        unsigned char *begin;
        unsigned char *data = copy_at(bytes, len, offset, &begin);
        teeny_model *model = NULL;
        released r;
        memset(&r, 0, sizeof r);
        MUST(teeny_model_load_memory(data, len, release, &r, NULL, &model));
        CHECK(r.times == 1 && r.data == data && r.len == len);
        memset(data, 0xAA, len);
        free(begin);
        CHECK(works(model, expected));
        teeny_model_free(model);
        CHECK(r.times == 1);
    }
}

/* Where the weights become others, the memory is needed no more. */
static void converted(const unsigned char *bytes, size_t len) {
    teeny_model *expected = load("bf16");
    teeny_model_options o = model_options();
    teeny_model *model = NULL;
    unsigned char *begin;
    unsigned char *data = copy_at(bytes, len, 0, &begin);
    released r;
    memset(&r, 0, sizeof r);
    r.frees = 1;
    o.dtype = TEENY_DTYPE_BF16;
    MUST(teeny_model_load_memory(data, len, release, &r, &o, &model));
    CHECK(r.times == 1);
    CHECK(works(model, expected));
    teeny_model_free(model);
    CHECK(r.times == 1);
    teeny_model_free(expected);
}

static void without_release(const unsigned char *bytes, size_t len, const teeny_model *expected) {
    teeny_model *model = NULL;
    MUST(teeny_model_load_memory(bytes, len, NULL, NULL, NULL, &model));
    CHECK(works(model, expected));
    teeny_model_free(model);
    /* Longer than the model: refused, as a longer file is. */
    model = NULL;
    FAILS(teeny_model_load_memory(bytes, len - 1, NULL, NULL, NULL, &model), TEENY_FORMAT);
    CHECK(model == NULL);
}

/* Every truncation is refused; a flipped byte is refused or gives a model, never anything worse. */
static void damaged(const unsigned char *bytes, size_t len) {
    unsigned char *copy = malloc(len);
    const size_t step = quick ? 61 : 1;
    size_t header = 8;
    size_t i;
    teeny_model *model = NULL;
    if (copy == NULL) {
        exit(1);
    }
    for (i = 0; i < 8; i++) {
        header += (size_t)bytes[i] << (8 * i);
    }
    CHECK(header > 500 && header < len);
    for (i = 0; i < len; i += i < header + 64 ? step : 997 * step) {
        /* A block of its own size, so that valgrind and ASan see a byte read too far. */
        unsigned char *part = malloc(i > 0 ? i : 1);
        if (part == NULL) {
            exit(1);
        }
        memcpy(part, bytes, i);
        FAILS(teeny_model_load_memory(part, i, NULL, NULL, NULL, &model), TEENY_FORMAT);
        free(part);
    }
    CHECK(model == NULL);
    for (i = 0; i < header; i += step) {
        static const unsigned char flips[] = {0x01, 0x80, 0xFF};
        size_t f;
        for (f = 0; f < sizeof flips; f++) {
            teeny_status status;
            memcpy(copy, bytes, len);
            copy[i] ^= flips[f];
            status = teeny_model_load_memory(copy, len, NULL, NULL, NULL, &model);
            if (status == TEENY_OK) {
                teeny_model_free(model);
                model = NULL;
            } else {
                CHECK(status == TEENY_FORMAT || status == TEENY_OUT_OF_MEMORY);
            }
        }
    }
    CHECK(model == NULL && teeny_object_count() == 1);
    free(copy);
}

void memory_group(void) {
    size_t len = 0;
    unsigned char *bytes = read_file(path_of("model"), &len);
    teeny_model *expected;
    refusing(bytes, len);
    cancelled(bytes, len);
    expected = load("model");
    used_in_place(bytes, len, expected);
    outlived_by_sessions(bytes, len, expected);
    copied(bytes, len, expected);
    converted(bytes, len);
    without_release(bytes, len, expected);
    damaged(bytes, len);
    teeny_model_free(expected);
    free(bytes);
}
