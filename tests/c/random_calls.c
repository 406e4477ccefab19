/* Calls in random order with sound, freed, foreign and made-up handles and hostile values. What is
 * promised for all of them: a known status, never a fault, outputs only as the status says. */
#include "check.h"

enum { SLOTS = 6, BUFFER = 4096, TOKENS = 300 };

/* Every kind of handle as what it is in common. */
enum { MODEL, SESSION, SAMPLER, STREAM, KINDS };
static void *slots[KINDS][SLOTS]; /* Sound, freed or NULL. */

static uint64_t seed;
static int depth; /* Above 0 in a callback. */
static uint32_t tokens[TOKENS];
static union {
    unsigned char bytes[BUFFER];
    char text[BUFFER];
    uint32_t tokens[BUFFER / 4];
    float numbers[BUFFER / 4];
} buffers[3];
static unsigned char *saved;
static size_t saved_len;
static unsigned char *model_bytes;
static size_t model_len;
static long counts[TEENY_DEVICE + 1];

static uint32_t below(uint32_t n) {
    return random_bits(&seed) % n;
}

static int chance(uint32_t percent) {
    return below(100) < percent;
}

static void *some_handle(int kind) {
    void *handle = slots[kind][below(SLOTS)];
    switch (below(30)) {
    case 0:
        return NULL;
    case 1:
        return slots[below(KINDS)][below(SLOTS)];
    case 2:
        return made_up(random_bits(&seed));
    case 3:
        /* One bit wrong: no handle at all, or one of another turn. */
        return made_up((uintptr_t)handle ^ (uintptr_t)1 << (chance(50) ? 0 : 50));
    default:
        return handle;
    }
}

static size_t some_size(void) {
    static const size_t sizes[] = {0, 0, 1, 1, 2, 3, 7, 8, 24, 25, 64, 65, 130, 200};
    return sizes[below(sizeof sizes / sizeof sizes[0])];
}

/* The place, or sometimes one that is refused. */
static void *some_place(void *place, size_t alignment) {
    if (chance(3)) {
        return NULL;
    }
    if (alignment > 1 && chance(3)) {
        return (char *)place + 1 + below((uint32_t)alignment - 1);
    }
    return place;
}

static float some_number(void) {
    static const float numbers[] = {0,    1,   -1,   0.5F,     0.95F,     0.05F,  2,     100,
                                    1000, NAN, 1e-9F, INFINITY, -INFINITY, 3e38F, 1e-40F};
    return numbers[below(sizeof numbers / sizeof numbers[0])];
}

static uint32_t some_token(void) {
    return chance(3) ? random_bits(&seed) : below(VOCAB);
}

static const char *some_text(size_t *len) {
    static const char *const texts[] = {"A",   "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "A\303\251Z", "",
                                        "1",   "A\xff",                      "\303",       "A B",
                                        "ABC", "Z"};
    const char *text = texts[below(sizeof texts / sizeof texts[0])];
    *len = strlen(text);
    if (chance(2)) {
        *len = SIZE_MAX;
    }
    return chance(2) ? NULL : text;
}

static void count(teeny_status status) {
    const char *message = teeny_last_error();
    if (status < 0 || status > TEENY_DEVICE || status == TEENY_PANIC ||
        (status == TEENY_OK) != (*message == '\0')) {
        fprintf(stderr, "status %d: %s\n", (int)status, message);
        CHECK(!"a known status, with a message unless it is TEENY_OK");
        return;
    }
    counts[status]++;
}

/* Keeps a new handle in the place of an older one. */
static void keep(int kind, void *handle, teeny_status status) {
    void **slot = &slots[kind][below(SLOTS)];
    if (status != TEENY_OK) {
        CHECK(handle == NULL);
        return;
    }
    CHECK(handle != NULL);
    switch (kind) {
    case MODEL:
        teeny_model_free(*slot);
        break;
    case SESSION:
        teeny_session_free(*slot);
        break;
    case SAMPLER:
        teeny_sampler_free(*slot);
        break;
    default:
        teeny_stream_free(*slot);
    }
    *slot = handle;
}

static void step(void);

static int32_t on_text(void *user_data, const char *text, size_t len) {
    CHECK(user_data == slots && text != NULL && len > 0);
    depth++;
    while (depth == 1 && chance(30)) {
        step();
    }
    depth--;
    return chance(10) ? -1 : 0;
}

static int32_t on_progress(void *user_data, float done) {
    CHECK(user_data == slots && done >= 0 && done <= 1);
    depth++;
    while (depth == 1 && chance(20)) {
        step();
    }
    depth--;
    return chance(5);
}

static void on_release(void *user_data, const void *data, size_t len) {
    CHECK(user_data == slots && len == model_len);
    /* Whoever reads it later is seen by valgrind and ASan. */
    free((void *)(uintptr_t)data);
}

static teeny_model_options some_model_options(void) {
    teeny_model_options o = model_options();
    o.max_seq_len = chance(80) ? 0 : some_size();
    o.dtype = chance(80) ? 0 : (int32_t)below(8) - 1;
    o.map = chance(80) ? 1 : (int32_t)below(4) - 1;
    o.device = chance(90) ? NULL : chance(50) ? "cpu" : "cuda";
    o.threads = chance(98) ? below(3) : 257;
    o.kv_dtype = chance(80) ? 0 : (int32_t)below(5) - 1;
    o.fast = chance(90) ? 0 : (int32_t)below(4) - 1;
    if (chance(30)) {
        o.progress = on_progress;
        o.progress_user_data = slots;
    }
    if (chance(3)) {
        o.size = some_size();
    }
    return o;
}

static void load_model(void) {
    static const char *const names[] = {"model", "bf16", "learned", "foreign", "none"};
    teeny_model_options o = some_model_options();
    teeny_model *model = NULL;
    teeny_status status;
    if (chance(50)) {
        status = teeny_model_load(path_of(names[below(5)]), chance(50) ? &o : NULL, &model);
    } else {
        unsigned char *copy = malloc(model_len);
        if (copy == NULL) {
            return;
        }
        memcpy(copy, model_bytes, model_len);
        copy[chance(70) ? model_len - 1 : below((uint32_t)model_len)] ^= 1;
        status = teeny_model_load_memory(copy, model_len, on_release, slots,
                                         chance(50) ? &o : NULL, &model);
        if (status != TEENY_OK) {
            free(copy);
        }
    }
    count(status);
    keep(MODEL, model, status);
}

static teeny_generate_options some_generate_options(const teeny_text *stop) {
    teeny_generate_options o = generate_options();
    o.max_tokens = chance(10) ? SIZE_MAX : some_size() % 30;
    if (chance(30)) {
        o.stop = stop;
        o.n_stop = 2;
    }
    o.raw_bytes = chance(90) ? chance(20) : 7;
    o.ignore_end = chance(90) ? chance(20) : 7;
    return o;
}

static teeny_sampler_options some_sampler_options(void) {
    teeny_sampler_options o = sampler_options();
    o.seed = random_bits(&seed);
    o.top_k = some_size();
    o.penalty_last_n = chance(5) ? SIZE_MAX : some_size();
    o.temperature = chance(80) ? 1 : some_number();
    o.top_p = chance(80) ? 0.9F : some_number();
    o.repeat_penalty = chance(80) ? 1.1F : some_number();
    o.presence_penalty = chance(80) ? 0.1F : some_number();
    return o;
}

static void generate(void) {
    teeny_text stop[2] = {{"QR", 2}, {"\303\251", 2}};
    teeny_generate_options o = some_generate_options(stop);
    teeny_sampler_options s = some_sampler_options();
    size_t len;
    const char *text = some_text(&len);
    teeny_stream *stream = NULL;
    teeny_status status;
    switch (below(3)) {
    case 0:
        count(teeny_generate(some_handle(MODEL), text, len, chance(50) ? &s : NULL, &o,
                             chance(98) ? on_text : NULL, slots));
        break;
    case 1:
        count(teeny_session_generate(some_handle(SESSION), some_handle(SAMPLER), text, len, &o,
                                     chance(98) ? on_text : NULL, slots));
        break;
    default:
        status = teeny_stream_new(some_handle(SESSION), some_handle(SAMPLER), text, len,
                                  chance(90) ? &o : NULL, &stream);
        count(status);
        keep(STREAM, stream, status);
    }
}

static void model_step(void) {
    teeny_model *m = some_handle(MODEL);
    teeny_text key;
    teeny_text value;
    size_t len = 0;
    size_t text_len;
    const char *text;
    teeny_score score;
    switch (below(8)) {
    case 0:
        load_model();
        break;
    case 1:
        (void)(teeny_model_vocab_size(m) + teeny_model_max_seq_len(m) + teeny_model_n_embd(m));
        (void)(teeny_model_n_params(m) + teeny_model_memory_used(m));
        (void)teeny_model_metadata_count(m);
        break;
    case 2:
        count(teeny_model_metadata_at(m, some_size(), some_place(&key, 8), some_place(&value, 8)));
        break;
    case 3:
        text = some_text(&text_len);
        count(teeny_model_metadata_get(m, text, text_len, &value));
        break;
    case 4:
        text = some_text(&text_len);
        count(teeny_model_encode(m, text, text_len, some_place(buffers[0].tokens, 4), some_size(),
                                 some_place(&len, 8)));
        break;
    case 5:
        tokens[0] = some_token();
        count(teeny_model_decode(m, some_place(tokens, 4), some_size(),
                                 some_place(buffers[0].text, 1), some_size(), &len));
        break;
    case 6:
        count(teeny_model_token_bytes(m, some_token(), some_place(&value, 8)));
        break;
    default:
        text = some_text(&text_len);
        count(teeny_score_text(m, text, text_len, &score, chance(95) ? sizeof score : 3));
    }
}

static void sampler_step(void) {
    teeny_sampler *s = some_handle(SAMPLER);
    teeny_sampler *made = NULL;
    teeny_sampler_options o = some_sampler_options();
    teeny_logit_bias bias[3];
    teeny_status status;
    uint32_t token = 0;
    size_t len = 0;
    int i;
    for (i = 0; i < 3; i++) {
        bias[i].token = some_token();
        bias[i].bias = chance(80) ? 1 : some_number();
    }
    for (i = 0; i < 20; i++) {
        buffers[0].numbers[i] = chance(90) ? (float)below(100) / 10 : some_number();
    }
    switch (below(12)) {
    case 0:
        status = teeny_sampler_new(chance(80) ? &o : NULL, &made);
        count(status);
        keep(SAMPLER, made, status);
        break;
    case 1:
        status =
            chance(50) ? teeny_sampler_new_chain(seed, &made) : teeny_sampler_new_greedy(&made);
        count(status);
        keep(SAMPLER, made, status);
        break;
    case 2:
        status = teeny_sampler_clone(s, &made);
        count(status);
        keep(SAMPLER, made, status);
        break;
    case 3:
        count(teeny_sampler_add_logit_bias(s, some_place(bias, 4), below(4)));
        break;
    case 4:
        count(teeny_sampler_add_penalties(s, some_size(), some_number(), some_number(),
                                          some_number()));
        break;
    case 5:
        count(teeny_sampler_add_top_k(s, some_size()));
        break;
    case 6:
        count(chance(50) ? teeny_sampler_add_top_p(s, some_number())
                         : teeny_sampler_add_min_p(s, some_number()));
        break;
    case 7:
        count(teeny_sampler_add_temperature(s, some_number()));
        break;
    case 8:
        count(teeny_sampler_describe(s, some_place(buffers[1].text, 1), some_size(), &len));
        break;
    case 9:
        count(teeny_sampler_accept(s, some_token()));
        break;
    case 10:
        count(chance(20) ? teeny_sampler_reset(s) : teeny_sampler_accept(s, 1));
        break;
    default:
        count(teeny_sampler_sample(s, some_place(buffers[0].numbers, 4), below(21),
                                   some_place(&token, 4)));
    }
}

static void save_or_restore(teeny_session *s) {
    size_t len = 0;
    teeny_status status;
    if (chance(50)) {
        status = teeny_session_save(s, NULL, 0, &len);
        count(status);
        if (status == TEENY_OK) {
            free(saved);
            saved = malloc(len);
            saved_len = len;
            if (saved == NULL) {
                exit(1);
            }
            status = teeny_session_save(s, saved, chance(90) ? len : len / 2, &len);
            count(status);
            if (status != TEENY_OK) {
                free(saved);
                saved = NULL;
                saved_len = 0;
            }
        }
    } else if (saved_len > 0) {
        const size_t at = below((uint32_t)saved_len);
        const unsigned char flip = chance(50) ? (unsigned char)(1U << below(8)) : 0;
        saved[at] ^= flip;
        status = teeny_session_restore(s, saved, chance(80) ? saved_len : at);
        count(status);
        CHECK(status != TEENY_OK || flip == 0);
        saved[at] ^= flip;
    }
}

static void session_step(void) {
    teeny_session *s = some_handle(SESSION);
    teeny_session *made = NULL;
    teeny_session_options o = session_options();
    teeny_session_stats stats;
    const float *numbers = NULL;
    teeny_status status;
    size_t len = 0;
    uint32_t token = 0;
    o.overflow = chance(95) ? (int32_t)below(3) : 3;
    o.reserve = chance(70) ? 0 : some_size();
    tokens[below(TOKENS)] = chance(3) ? some_token() : below(VOCAB);
    switch (below(14)) {
    case 0:
    case 1:
        status = teeny_session_new(some_handle(MODEL), chance(50) ? &o : NULL, &made);
        count(status);
        keep(SESSION, made, status);
        break;
    case 2:
    case 3:
        count(teeny_session_feed(s, some_place(tokens + below(50), 4), some_size()));
        break;
    case 4:
        count(teeny_session_decode(s, some_token()));
        break;
    case 5:
        status = teeny_session_logits(s, some_place((void *)&numbers, 8), some_place(&len, 8));
        count(status);
        CHECK(status != TEENY_OK || isfinite(numbers[len - 1]));
        status = teeny_session_hidden(s, &numbers, &len);
        count(status);
        CHECK(status != TEENY_OK || isfinite(numbers[len - 1]));
        break;
    case 6:
        count(teeny_session_sample(s, some_handle(SAMPLER), some_place(&token, 4)));
        break;
    case 7:
        count(teeny_session_truncate(s, chance(50) ? teeny_session_position(s) - below(30)
                                                   : some_size()));
        break;
    case 8:
        status = teeny_session_fork(s, &made);
        count(status);
        keep(SESSION, made, status);
        break;
    case 9:
        count(chance(20) ? teeny_session_reset(s) : teeny_session_cancel(s, chance(30)));
        break;
    case 10:
        save_or_restore(s);
        break;
    case 11:
        len = some_size() % 66;
        count(teeny_session_score(s, some_place(tokens, 4), len, some_place(buffers[0].numbers, 4),
                                  below(4), some_place(buffers[1].tokens, 4),
                                  some_place(buffers[2].numbers, 4)));
        break;
    case 12:
        count(teeny_session_get_stats(s, some_place(&stats, 8), sizeof stats));
        break;
    default:
        generate();
    }
}

static void stream_step(void) {
    teeny_stream *s = some_handle(STREAM);
    teeny_text piece = {NULL, 0};
    int32_t reason = -1;
    teeny_status status;
    status = teeny_stream_next(s, some_place(&piece, 8));
    count(status);
    if (status == TEENY_OK) {
        CHECK(piece.data != NULL && (piece.len == 0 || memchr(piece.data, 1, piece.len) == NULL));
    }
    status = teeny_stream_end_reason(s, &reason);
    count(status);
    CHECK(status != TEENY_OK || (reason >= TEENY_END_NONE && reason <= TEENY_END_FAILED));
}

static void free_one(void) {
    switch (below(8)) {
    case 0:
        teeny_model_free(some_handle(MODEL));
        break;
    case 1:
    case 2:
        teeny_session_free(some_handle(SESSION));
        break;
    case 3:
    case 4:
        teeny_sampler_free(some_handle(SAMPLER));
        break;
    default:
        teeny_stream_free(some_handle(STREAM));
    }
}

static void step(void) {
    const uint32_t which = below(100);
    if (which < 15) {
        model_step();
    } else if (which < 60) {
        session_step();
    } else if (which < 80) {
        sampler_step();
    } else if (which < 96) {
        stream_step();
    } else {
        free_one();
    }
}

static void sequence(uint64_t number, int steps) {
    int kind;
    int i;
    seed = number;
    random_tokens(tokens, TOKENS, number);
    for (i = 0; i < steps; i++) {
        step();
    }
    for (kind = 0; kind < KINDS; kind++) {
        for (i = 0; i < SLOTS; i++) {
            teeny_model_free(slots[kind][i]);
            teeny_session_free(slots[kind][i]);
            teeny_sampler_free(slots[kind][i]);
            teeny_stream_free(slots[kind][i]);
            slots[kind][i] = NULL;
        }
    }
    if (!CHECK(teeny_object_count() == 0)) {
        fprintf(stderr, "sequence %lu\n", (unsigned long)number);
    }
}

void random_calls_group(void) {
    const int sequences = quick ? 4 : 60;
    const int steps = quick ? 500 : 1000;
    int i;
    model_bytes = read_file(path_of("model"), &model_len);
    for (i = 0; i < sequences; i++) {
        sequence(1000 + (uint64_t)i, steps);
    }
    /* The calls reach what they are meant to reach. */
    CHECK(counts[TEENY_OK] > sequences * steps / 8);
    CHECK(counts[TEENY_INVALID_HANDLE] > 0 && counts[TEENY_NULL_POINTER] > 0);
    CHECK(counts[TEENY_INVALID_ARGUMENT] > 0 && counts[TEENY_TOKENIZER] > 0);
    if (!quick) {
        CHECK(counts[TEENY_BUSY] > 0 && counts[TEENY_CANCELLED] > 0);
        CHECK(counts[TEENY_CONTEXT_FULL] > 0 && counts[TEENY_MISMATCH] > 0);
        CHECK(counts[TEENY_FORMAT] > 0 && counts[TEENY_BUFFER_TOO_SMALL] > 0);
        CHECK(counts[TEENY_NOT_FOUND] > 0 && counts[TEENY_IO] > 0);
        CHECK(counts[TEENY_UNSUPPORTED] > 0);
    }
    free(saved);
    saved = NULL;
    free(model_bytes);
}
