/* Models from files: loading and its failures, options, progress, what a model says of itself. */
#include "check.h"

/* What the layout of check.h's models makes: embedding, head, final norm, two layers. */
enum { LAYER = 4 * N_EMBD * N_EMBD + 3 * N_EMBD * 37 + 2 * N_EMBD };
enum { N_PARAMS = 2 * VOCAB * N_EMBD + N_EMBD + 2 * LAYER };

static void foreign_files(void) {
    teeny_model *const untouched = made_up(7);
    teeny_model *model = untouched;
    char unaligned[2 * sizeof model] = {0};
    char path[4096];

    EXPECT(teeny_model_load(NULL, NULL, &model), TEENY_NULL_POINTER, "path: found NULL");
    EXPECT(teeny_model_load(path_of("model"), NULL, NULL), TEENY_NULL_POINTER, "out: found NULL");
    EXPECT(teeny_model_load(path_of("model"), NULL, (void *)(unaligned + 1)),
           TEENY_INVALID_ARGUMENT, "out: found address");
    EXPECT(teeny_model_load("nowhere.safetensors", NULL, &model), TEENY_IO, "nowhere.safetensors");
    EXPECT(teeny_model_load(".", NULL, &model), TEENY_IO, "folder");
    EXPECT(teeny_model_load("/dev/null", NULL, &model), TEENY_IO, "device");
    FAILS(teeny_model_load("", NULL, &model), TEENY_IO);
    EXPECT(teeny_model_load(path_of("foreign"), NULL, &model), TEENY_FORMAT, "model file: header");
    CHECK(strstr(teeny_last_error(), path_of("foreign")) != NULL);
    EXPECT(teeny_model_load(path_of("cut"), NULL, &model), TEENY_FORMAT, "model file");
    EXPECT(teeny_model_load(path_of("empty"), NULL, &model), TEENY_FORMAT, "model file");
    EXPECT(teeny_model_load("\xff.safetensors", NULL, &model), TEENY_INVALID_ARGUMENT,
           "path: found byte 0xff at 0, expected UTF-8");
    snprintf(path, sizeof path, "%s/deeper", path_of("model"));
    FAILS(teeny_model_load(path, NULL, &model), TEENY_IO);
    memset(path, 'a', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    FAILS(teeny_model_load(path, NULL, &model), TEENY_IO);
    CHECK(model == untouched && unaligned[1] == 0);
    CHECK(teeny_object_count() == 0);
}

/* Of teeny_model_options in the first header. */
enum { FIRST_SIZE = offsetof(teeny_model_options, fast) };

/* The options of a later header. */
typedef struct newer {
    teeny_model_options options;
    size_t later;
} newer;

static void initialising(void) {
    teeny_model_options options;
    teeny_model_options before;
    newer grown;
    memset(&options, 7, sizeof options);
    before = options;

    EXPECT(teeny_model_options_init(NULL, sizeof options), TEENY_NULL_POINTER, "options");
    FAILS(teeny_model_options_init(made_up((uintptr_t)&options + 1), sizeof options),
          TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_model_options_init(&options, 0), TEENY_INVALID_ARGUMENT, "size: found 0");
    EXPECT(teeny_model_options_init(&options, sizeof options - 1), TEENY_INVALID_ARGUMENT,
           "expected sizeof(teeny_model_options)");
    EXPECT(teeny_model_options_init(&options, SIZE_MAX), TEENY_INVALID_ARGUMENT, "size");
    CHECK(memcmp(&options, &before, sizeof options) == 0);

    options = model_options();
    CHECK(options.size == sizeof options && options.device == NULL);
    CHECK(options.progress == NULL && options.progress_user_data == NULL);
    CHECK(options.max_seq_len == 0 && options.threads == 0 && options.map == 1);
    CHECK(options.dtype == TEENY_DTYPE_AS_STORED && options.kv_dtype == TEENY_KV_F32);
    CHECK(options.fast == 0 && options.reserved == 0);
    memset(&grown, 7, sizeof grown);
    OK(teeny_model_options_init(&grown.options, sizeof grown));
    CHECK(grown.options.size == sizeof grown && grown.later == 0);
}

static void hostile_options(void) {
    teeny_model *const untouched = made_up(7);
    teeny_model *model = untouched;
    teeny_model_options o = model_options();
    newer grown;
    char unaligned[sizeof o + 16] = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s", path_of("model"));

#define REFUSED(change, status, part)                                                              \
    do {                                                                                           \
        o = model_options();                                                                       \
        change;                                                                                    \
        EXPECT(teeny_model_load(path, &o, &model), status, part);                                  \
    } while (0)
    REFUSED(o.size = 0, TEENY_INVALID_ARGUMENT, "options.size: found 0");
    REFUSED(o.size = sizeof o - 1, TEENY_INVALID_ARGUMENT, "options.size");
    REFUSED(o.size = SIZE_MAX, TEENY_INVALID_ARGUMENT, "options.size");
    REFUSED(o.size = FIRST_SIZE - 8, TEENY_INVALID_ARGUMENT, "options.size: found 48");
    REFUSED(o.size = FIRST_SIZE + 4, TEENY_INVALID_ARGUMENT, "options.size: found 60");
    REFUSED(o.reserved = 1, TEENY_INVALID_ARGUMENT, "reserved");
    REFUSED(o.threads = 257, TEENY_INVALID_ARGUMENT,
            "options.threads: found 257, expected 0 to 256");
    REFUSED(o.threads = UINT32_MAX, TEENY_INVALID_ARGUMENT, "threads: found 4294967295");
    REFUSED(o.kv_dtype = 3, TEENY_INVALID_ARGUMENT, "options.kv_dtype: found 3");
    REFUSED(o.kv_dtype = -1, TEENY_INVALID_ARGUMENT, "options.kv_dtype: found -1");
    REFUSED((o.kv_dtype = TEENY_KV_Q8, o.device = "cuda"), TEENY_INVALID_ARGUMENT,
            "options.kv_dtype: found 2, expected TEENY_KV_F32 = 0 on a GPU");
    REFUSED(o.fast = 2, TEENY_INVALID_ARGUMENT, "options.fast: found 2, expected 0 or 1");
    REFUSED(o.fast = -1, TEENY_INVALID_ARGUMENT, "fast: found -1");
    REFUSED(o.dtype = 6, TEENY_INVALID_ARGUMENT, "dtype: found 6");
    REFUSED(o.dtype = -1, TEENY_INVALID_ARGUMENT, "dtype: found -1");
    REFUSED(o.map = 2, TEENY_INVALID_ARGUMENT, "map: found 2");
    REFUSED(o.map = -1, TEENY_INVALID_ARGUMENT, "map: found -1");
    REFUSED(o.max_seq_len = CONTEXT + 1, TEENY_INVALID_ARGUMENT, "max_seq_len: found 25");
    REFUSED(o.max_seq_len = SIZE_MAX, TEENY_INVALID_ARGUMENT, "max_seq_len");
    REFUSED(o.device = "", TEENY_INVALID_ARGUMENT, "device");
    REFUSED(o.device = "gpu", TEENY_INVALID_ARGUMENT, "device");
    REFUSED(o.device = "CPU", TEENY_INVALID_ARGUMENT, "device");
    REFUSED(o.device = "cpu:0", TEENY_INVALID_ARGUMENT, "device");
    REFUSED(o.device = "cudax", TEENY_INVALID_ARGUMENT, "device");
    REFUSED(o.device = "\xff", TEENY_INVALID_ARGUMENT, "device");
    REFUSED(o.device = "cuda", TEENY_UNSUPPORTED, "cuda");
    REFUSED(o.device = "cuda:0", TEENY_UNSUPPORTED, "cuda");
    REFUSED(o.device = "cuda:15", TEENY_UNSUPPORTED, "cuda");
#undef REFUSED
    EXPECT(teeny_model_load(path, (void *)(unaligned + 1), &model), TEENY_INVALID_ARGUMENT,
           "options: found address");
    grown.options = model_options();
    grown.options.size = sizeof grown;
    grown.later = 1;
    EXPECT(teeny_model_load(path, &grown.options, &model), TEENY_INVALID_ARGUMENT,
           "older than the program's teeny.h");
    CHECK(model == untouched);
    CHECK(teeny_object_count() == 0);
    grown.later = 0;
    MUST(teeny_model_load(path, &grown.options, &model));
    teeny_model_free(model);
}

/* The logits after some tokens; returns the bytes of the session's keys and values. */
static size_t logits_with(const char *name, const teeny_model_options *options, float *logits) {
    static const uint32_t tokens[] = {5, 0, 199, 5, 77, 31};
    teeny_model *model = NULL;
    teeny_session *session;
    teeny_session_stats stats;
    state now;
    MUST(teeny_model_load(path_of(name), options, &model));
    session = fed(model, tokens, 6);
    now = state_of(session);
    memcpy(logits, now.logits, sizeof now.logits);
    OK(teeny_session_get_stats(session, &stats, sizeof stats));
    teeny_model_free(model);
    teeny_session_free(session);
    return stats.kv_bytes;
}

/* A number stands for the logits: all of their bits. */
static uint64_t fingerprint(const char *name, const teeny_model_options *options) {
    float logits[VOCAB];
    size_t i;
    uint64_t hash = 0;
    logits_with(name, options, logits);
    for (i = 0; i < VOCAB; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        hash = (hash ^ bits) * 0x100000001B3ULL;
        CHECK(isfinite(logits[i]));
    }
    return hash;
}

/* Oracles: a file of the same weights as another element type, and other ways to the same file. */
static void options_that_change_nothing(void) {
    const uint64_t f32 = fingerprint("model", NULL);
    const uint64_t bf16 = fingerprint("bf16", NULL);
    uint64_t q8;
    teeny_model_options o = model_options();
    CHECK(f32 != bf16 && f32 != fingerprint("other", NULL));
    CHECK(f32 == fingerprint("model", &o));
    o.map = 0;
    CHECK(f32 == fingerprint("model", &o));
    o.dtype = TEENY_DTYPE_F32;
    CHECK(f32 == fingerprint("model", &o));
    CHECK(bf16 == fingerprint("bf16", &o));
    o.map = 1;
    CHECK(bf16 == fingerprint("bf16", &o));
    o.dtype = TEENY_DTYPE_BF16;
    CHECK(bf16 == fingerprint("bf16", &o));
    CHECK(bf16 == fingerprint("model", &o));
    o.dtype = TEENY_DTYPE_F16;
    CHECK(f32 != fingerprint("model", &o));
    o.dtype = TEENY_DTYPE_Q8;
    q8 = fingerprint("model", &o);
    CHECK(q8 != f32 && q8 == fingerprint("q8", NULL) && q8 == fingerprint("q8", &o));
    o.dtype = TEENY_DTYPE_Q4;
    CHECK(f32 != fingerprint("model", &o) && q8 != fingerprint("model", &o));
    o = model_options();
    o.device = "cpu";
    o.threads = 1;
    CHECK(f32 == fingerprint("model", &o));
    o.threads = 2;
    CHECK(f32 == fingerprint("model", &o) && bf16 == fingerprint("bf16", &o));
    o.threads = quick ? 3 : 256;
    CHECK(f32 == fingerprint("model", &o));
    o.fast = 1; /* For weights of bf16 only. */
    CHECK(f32 == fingerprint("model", &o));
    o.fast = 0;
    o.device = "auto";
    o.threads = 0;
    CHECK(f32 == fingerprint("model", &o));
    o.max_seq_len = CONTEXT;
    CHECK(f32 == fingerprint("model", &o));
    o.max_seq_len = 6; /* As many as the fingerprint feeds. */
    CHECK(f32 == fingerprint("model", &o));
    o.max_seq_len = 5;
    CHECK(f32 != fingerprint("model", &o));
}

/* How far logits are from others, in parts of their size. */
static double distance(const float *logits, const float *exact) {
    double difference = 0;
    double size = 0;
    int i;
    for (i = 0; i < VOCAB; i++) {
        difference += pow((double)logits[i] - (double)exact[i], 2);
        size += pow((double)exact[i], 2);
    }
    return sqrt(difference / size);
}

/* Fewer bits for keys and values take less memory and change the logits little; so do the CPU's
 * instructions for bf16, where it has them. */
static void options_that_change_little(void) {
    float exact[VOCAB];
    float logits[VOCAB];
    teeny_model_options o = model_options();
    size_t f32 = logits_with("model", NULL, exact);
    size_t f16;
    size_t q8;
    o.kv_dtype = TEENY_KV_F32;
    CHECK(logits_with("model", &o, logits) == f32 && same_floats(logits, exact, VOCAB));
    o.kv_dtype = TEENY_KV_F16;
    f16 = logits_with("model", &o, logits);
    CHECK(f16 < f32 && distance(logits, exact) > 0 && distance(logits, exact) < 2e-3);
    o.kv_dtype = TEENY_KV_Q8;
    q8 = logits_with("model", &o, logits);
    CHECK(q8 < f16 && distance(logits, exact) > 0 && distance(logits, exact) < 2e-2);
    o.device = "auto"; /* No GPU has them. */
    CHECK(logits_with("model", &o, logits) == q8);
    o = model_options();
    logits_with("bf16", NULL, exact);
    o.fast = 1;
    logits_with("bf16", &o, logits);
    CHECK(distance(logits, exact) < 2e-2);
}

/* The options of the first header, which ended before `fast`, with other memory behind them. */
static void options_of_an_older_program(void) {
    float exact[VOCAB];
    float logits[VOCAB];
    teeny_model_options o;
    teeny_model_options untouched;
    memset(&o, 7, sizeof o);
    untouched = o;
    OK(teeny_model_options_init(&o, FIRST_SIZE));
    CHECK(o.size == FIRST_SIZE && o.map == 1 && o.kv_dtype == TEENY_KV_F32);
    CHECK(memcmp(&o.fast, &untouched.fast, sizeof o - FIRST_SIZE) == 0);
    logits_with("bf16", NULL, exact);
    logits_with("bf16", &o, logits);
    CHECK(same_floats(logits, exact, VOCAB));
}

/* The context is what max_seq_len says, for a table of positions too. */
static void shorter_context(const char *name) {
    uint32_t tokens[13];
    teeny_model_options o = model_options();
    teeny_model *model = NULL;
    teeny_session *session;
    random_tokens(tokens, 13, 1);
    o.max_seq_len = 12;
    MUST(teeny_model_load(path_of(name), &o, &model));
    CHECK(teeny_model_max_seq_len(model) == 12);
    session = new_session_with(model, TEENY_OVERFLOW_ERROR);
    EXPECT(teeny_session_feed(session, tokens, 13), TEENY_CONTEXT_FULL, "max_seq_len = 12");
    OK(teeny_session_feed(session, tokens, 12));
    FAILS(teeny_session_decode(session, 0), TEENY_CONTEXT_FULL);
    teeny_session_free(session);
    teeny_model_free(model);
}

static void sizes(void) {
    teeny_model *model = load("model");
    teeny_model *bf16 = load("bf16");
    teeny_model *converted = NULL;
    teeny_model_options o = model_options();
    CHECK(teeny_model_vocab_size(model) == VOCAB);
    CHECK(teeny_model_max_seq_len(model) == CONTEXT);
    CHECK(teeny_model_n_embd(model) == N_EMBD);
    CHECK(teeny_model_n_params(model) == N_PARAMS);
    CHECK(teeny_model_n_params(bf16) == N_PARAMS);
    CHECK(teeny_model_memory_used(model) == 4 * N_PARAMS);
    CHECK(teeny_model_memory_used(bf16) >= 2 * N_PARAMS);
    CHECK(teeny_model_memory_used(bf16) < 3 * N_PARAMS);
    o.dtype = TEENY_DTYPE_F32;
    MUST(teeny_model_load(path_of("bf16"), &o, &converted));
    CHECK(teeny_model_memory_used(converted) == 4 * N_PARAMS);
    teeny_model_free(converted);
    o.dtype = TEENY_DTYPE_Q8;
    MUST(teeny_model_load(path_of("bf16"), &o, &converted));
    CHECK(teeny_model_n_params(converted) == N_PARAMS);
    CHECK(teeny_model_memory_used(converted) < teeny_model_memory_used(bf16));
    teeny_model_free(model);
    teeny_model_free(bf16);
    teeny_model_free(converted);
}

static int equals(teeny_text text, const char *expected) {
    return text.len == strlen(expected) && memcmp(text.data, expected, text.len) == 0;
}

/* In the order of bytes, as strcmp has it. */
static int before(teeny_text a, teeny_text b) {
    int order = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);
    return order < 0 || (order == 0 && a.len < b.len);
}

static void metadata(void) {
    teeny_model *model = load("model");
    teeny_session *session = new_session(model);
    const size_t n = teeny_model_metadata_count(model);
    teeny_text key = {"untouched", 9};
    teeny_text value = {"untouched", 9};
    teeny_text last = {"", 0};
    teeny_text found;
    size_t i;
    char unaligned[2 * sizeof key] = {0};

    CHECK(n >= 20 && n < 100);
    FAILS(teeny_model_metadata_at(model, n, &key, &value), TEENY_NOT_FOUND);
    FAILS(teeny_model_metadata_at(model, SIZE_MAX, &key, &value), TEENY_NOT_FOUND);
    EXPECT(teeny_model_metadata_at(model, 0, NULL, &value), TEENY_NULL_POINTER, "key");
    EXPECT(teeny_model_metadata_at(model, 0, &key, NULL), TEENY_NULL_POINTER, "value");
    FAILS(teeny_model_metadata_at(model, 0, (void *)(unaligned + 1), &value),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_model_metadata_at(model, 0, &key, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_model_metadata_get(model, NULL, 3, &value), TEENY_NULL_POINTER, "key");
    EXPECT(teeny_model_metadata_get(model, "format", 6, NULL), TEENY_NULL_POINTER, "value");
    FAILS(teeny_model_metadata_get(model, "format", 6, (void *)(unaligned + 1)),
          TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_model_metadata_get(model, "nothing", 7, &value), TEENY_NOT_FOUND, "nothing");
    FAILS(teeny_model_metadata_get(model, "", 0, &value), TEENY_NOT_FOUND);
    FAILS(teeny_model_metadata_get(model, "format", 5, &value), TEENY_NOT_FOUND);
    FAILS(teeny_model_metadata_get(model, "format", 7, &value), TEENY_NOT_FOUND);
    FAILS(teeny_model_metadata_get(model, "format", SIZE_MAX, &value), TEENY_INVALID_ARGUMENT);
    CHECK(equals(key, "untouched") && equals(value, "untouched"));

    for (i = 0; i < n; i++) {
        OK(teeny_model_metadata_at(model, i, &key, &value));
        CHECK(before(last, key));
        OK(teeny_model_metadata_get(model, key.data, key.len, &found));
        CHECK(found.data == value.data && found.len == value.len);
        last = key;
    }
    OK(teeny_model_metadata_get(model, "formats", 6, &found));
    CHECK(equals(found, "teeny"));
    OK(teeny_model_metadata_get(model, "vocab_size", 10, &found));
    CHECK(equals(found, "200"));
    /* The session keeps what was borrowed. */
    OK(teeny_model_metadata_get(model, "positional_encoding", 19, &found));
    teeny_model_free(model);
    CHECK(equals(found, "rope"));
    teeny_session_free(session);
}

typedef struct progress {
    int calls;
    int stop_at; /* The call that is answered with 7; 0 for none. */
    int rising;
    float first;
    float last;
} progress;

static int32_t take_progress(void *user_data, float done) {
    progress *p = user_data;
    p->rising &= done >= 0 && done <= 1 && (p->calls == 0 || done >= p->last);
    if (p->calls++ == 0) {
        p->first = done;
    }
    p->last = done;
    /* Teeny may be called, also where that fails. */
    CHECK(teeny_model_vocab_size(NULL) == 0);
    return p->calls == p->stop_at ? 7 : 0;
}

static void progressing(void) {
    int map;
    int dtype;
    for (map = 0; map < 2; map++) {
        for (dtype = 0; dtype < 2; dtype++) {
            progress seen = {0, 0, 1, -1, -1};
            teeny_model *model = NULL;
            teeny_model_options o = model_options();
            int i;
            o.map = map;
            o.dtype = dtype ? TEENY_DTYPE_BF16 : TEENY_DTYPE_AS_STORED;
            o.progress = take_progress;
            o.progress_user_data = &seen;
            MUST(teeny_model_load(path_of("model"), &o, &model));
            teeny_model_free(model);
            model = NULL;
            CHECK(seen.rising && seen.calls >= 2 && seen.first == 0 && seen.last == 1);
            for (i = 1; i <= seen.calls; i++) {
                progress stopped = {0, 0, 1, -1, -1};
                stopped.stop_at = i;
                o.progress_user_data = &stopped;
                EXPECT(teeny_model_load(path_of("model"), &o, &model), TEENY_CANCELLED, "7");
                CHECK(stopped.calls == i && model == NULL && teeny_object_count() == 0);
            }
        }
    }
}

void model_group(void) {
    foreign_files();
    initialising();
    hostile_options();
    options_that_change_nothing();
    options_that_change_little();
    options_of_an_older_program();
    shorter_context("model");
    shorter_context("learned");
    sizes();
    metadata();
    progressing();
}
