/* Saved sessions: they go on as the one that was saved; damaged and foreign ones change nothing. */
#include "check.h"

static const char *const kinds[] = {"model", "learned"};

/* What save writes, in memory of just that size. */
static unsigned char *saved(const teeny_session *session, size_t *len) {
    unsigned char *data;
    size_t again = 77;
    *len = 77;
    OK(teeny_session_save(session, NULL, 0, len));
    CHECK(*len > 0 && *len != 77);
    data = malloc(*len);
    if (data == NULL) {
        exit(1);
    }
    memset(data, 0xAB, *len);
    if (*len > 1) {
        unsigned char first = 0;
        FAILS(teeny_session_save(session, &first, 1, &again), TEENY_BUFFER_TOO_SMALL);
        CHECK(again == *len && first == 0);
        FAILS(teeny_session_save(session, data, *len - 1, &again), TEENY_BUFFER_TOO_SMALL);
        CHECK(again == *len && data[0] == 0xAB && memcmp(data, data + 1, *len - 1) == 0);
    }
    OK(teeny_session_save(session, data, *len, &again));
    CHECK(again == *len);
    return data;
}

static void round_trip(const teeny_model *model, size_t n) {
    enum { MORE = 100 };
    uint32_t tokens[800];
    teeny_session *original;
    teeny_session *restored;
    unsigned char *data;
    unsigned char *again;
    size_t len = 0;
    size_t len_again = 0;
    random_tokens(tokens, 800, 31);
    original = new_session(model);
    if (n > 0) {
        OK(teeny_session_feed(original, tokens, n));
    }
    data = saved(original, &len);
    CHECK(teeny_session_position(original) == n);

    /* Over what another session holds, more or less than that. */
    restored = fed(model, tokens + 50, n % 2 ? 400 : 3);
    OK(teeny_session_restore(restored, data, len));
    CHECK(IS_FED(restored, model, tokens, n));
    again = saved(restored, &len_again);
    CHECK(len == len_again && memcmp(data, again, len) == 0);
    free(again);
    OK(teeny_session_feed(restored, tokens + n, MORE));
    CHECK(IS_FED(restored, model, tokens, n + MORE));
    if (n > 1) {
        OK(teeny_session_restore(restored, data, len));
        /* It can go back as far as the original. */
        const teeny_status status = teeny_session_truncate(original, n - 1);
        CHECK(teeny_session_truncate(restored, n - 1) == status);
        CHECK(status == TEENY_OK || n > CONTEXT);
        if (status == TEENY_OK) {
            CHECK(IS_FED(restored, model, tokens, n - 1));
            OK(teeny_session_decode(restored, tokens[n - 1]));
            OK(teeny_session_decode(original, tokens[n - 1]));
        }
        CHECK(IS_FED(restored, model, tokens, n));
    }
    OK(teeny_session_feed(original, tokens + n, MORE));
    CHECK(IS_FED(original, model, tokens, n + MORE));
    teeny_session_free(original);
    /* Through an unaligned copy, after the original is gone. */
    again = malloc(len + 1);
    if (again == NULL) {
        exit(1);
    }
    memcpy(again + 1, data, len);
    OK(teeny_session_restore(restored, again + 1, len));
    CHECK(IS_FED(restored, model, tokens, n));
    free(again);
    teeny_session_free(restored);
    free(data);
}

/* Forks write none of it; a save of a fork is the fork's. */
static void of_a_fork(const teeny_model *model) {
    uint32_t tokens[60];
    teeny_session *parent;
    teeny_session *fork = NULL;
    unsigned char *data;
    size_t len = 0;
    random_tokens(tokens, 60, 32);
    parent = fed(model, tokens, 30);
    MUST(teeny_session_fork(parent, &fork));
    OK(teeny_session_feed(fork, tokens + 30, 30));
    data = saved(fork, &len);
    OK(teeny_session_restore(parent, data, len));
    CHECK(IS_FED(parent, model, tokens, 60));
    OK(teeny_session_truncate(fork, 59));
    CHECK(IS_FED(parent, model, tokens, 60) && IS_FED(fork, model, tokens, 59));
    free(data);
    teeny_session_free(parent);
    teeny_session_free(fork);
}

static void refusing(const teeny_model *model) {
    uint32_t tokens[30];
    teeny_model *other = load("other");
    teeny_model *learned = load("learned");
    teeny_session *s;
    teeny_session *elsewhere;
    unsigned char *data;
    size_t len = 0;
    size_t untouched = 77;
    char unaligned[16] = {0};
    state before;
    state after;
    random_tokens(tokens, 30, 33);
    s = fed(model, tokens, 7);
    data = saved(s, &len);
    before = state_of(s);
    EXPECT(teeny_session_save(s, NULL, len, &untouched), TEENY_NULL_POINTER, "data: found NULL");
    EXPECT(teeny_session_save(s, data, len, NULL), TEENY_NULL_POINTER, "len: found NULL");
    FAILS(teeny_session_save(s, data, len, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    CHECK(untouched == 77);
    EXPECT(teeny_session_restore(s, NULL, len), TEENY_NULL_POINTER, "data: found NULL");
    FAILS(teeny_session_restore(s, data, SIZE_MAX), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_restore(s, data, 0), TEENY_FORMAT);
    FAILS(teeny_session_restore(s, "not a saved session, only text that is long enough", 50),
          TEENY_FORMAT);
    after = state_of(s);
    CHECK(same_state(&before, &after));
    teeny_session_free(s);

    elsewhere = fed(other, tokens, 5);
    before = state_of(elsewhere);
    FAILS(teeny_session_restore(elsewhere, data, len), TEENY_MISMATCH);
    after = state_of(elsewhere);
    CHECK(same_state(&before, &after));
    teeny_session_free(elsewhere);
    elsewhere = fed(learned, tokens, 5);
    FAILS(teeny_session_restore(elsewhere, data, len), TEENY_MISMATCH);
    CHECK(IS_FED(elsewhere, learned, tokens, 5));
    teeny_session_free(elsewhere);
    free(data);
    teeny_model_free(other);
    teeny_model_free(learned);
}

/* A policy that could not have held so many tokens does not take them. */
static void policies(const teeny_model *model) {
    uint32_t tokens[100];
    teeny_session *sliding;
    teeny_session *bounded = new_session_with(model, TEENY_OVERFLOW_STOP);
    unsigned char *data;
    size_t len = 0;
    teeny_status status;
    random_tokens(tokens, 100, 34);
    sliding = fed(model, tokens, CONTEXT);
    data = saved(sliding, &len);
    OK(teeny_session_restore(bounded, data, len));
    CHECK(IS_FED(bounded, model, tokens, CONTEXT));
    FAILS(teeny_session_decode(bounded, 0), TEENY_CONTEXT_FULL);
    free(data);
    OK(teeny_session_feed(sliding, tokens + CONTEXT, 100 - CONTEXT));
    data = saved(sliding, &len);
    status = teeny_session_restore(bounded, data, len);
    CHECK(status == TEENY_CONTEXT_FULL || status == TEENY_INVALID_ARGUMENT);
    CHECK(IS_FED(bounded, model, tokens, CONTEXT));
    free(data);
    teeny_session_free(sliding);
    teeny_session_free(bounded);
}

/* Cut at every byte, and every byte changed: refused, and the session goes on as if not asked. */
static void damaged(const teeny_model *model, size_t n) {
    uint32_t tokens[220];
    teeny_session *s;
    teeny_session *victim;
    unsigned char *data;
    size_t len = 0;
    size_t i;
    state before;
    state after;
    const size_t step = quick ? 499 : n > CONTEXT ? 17 : 1;
    random_tokens(tokens, 220, 35);
    s = fed(model, tokens, n);
    data = saved(s, &len);
    victim = fed(model, tokens + 2, 9);
    before = state_of(victim);
    for (i = 0; i < len; i += i < 64 && !quick ? 1 : step) {
        static const unsigned char flips[] = {0x01, 0x80, 0xFF};
        unsigned char *part = malloc(i > 0 ? i : 1);
        teeny_status status;
        size_t f;
        if (part == NULL) {
            exit(1);
        }
        memcpy(part, data, i);
        FAILS(teeny_session_restore(victim, part, i), TEENY_FORMAT);
        free(part);
        for (f = 0; f < sizeof flips; f++) {
            data[i] ^= flips[f];
            status = teeny_session_restore(victim, data, len);
            if (status != TEENY_FORMAT && status != TEENY_MISMATCH) {
                fprintf(stderr, "byte %lu of %lu xor %u: %s\n", (unsigned long)i,
                        (unsigned long)len, flips[f], teeny_status_name(status));
                CHECK(0);
                OK(teeny_session_reset(victim));
                OK(teeny_session_feed(victim, tokens + 2, 9));
            }
            data[i] ^= flips[f];
        }
        after = state_of(victim);
        CHECK(same_state(&before, &after));
    }
    {
        unsigned char *longer = malloc(len + 8);
        if (longer == NULL) {
            exit(1);
        }
        memcpy(longer, data, len);
        memset(longer + len, 0, 8);
        FAILS(teeny_session_restore(victim, longer, len + 1), TEENY_FORMAT);
        FAILS(teeny_session_restore(victim, longer, len + 8), TEENY_FORMAT);
        free(longer);
    }
    OK(teeny_session_decode(victim, tokens[11]));
    CHECK(IS_FED(victim, model, tokens + 2, 10));
    OK(teeny_session_restore(victim, data, len));
    CHECK(IS_FED(victim, model, tokens, n));
    free(data);
    teeny_session_free(s);
    teeny_session_free(victim);
}

static void files(const teeny_model *model) {
    uint32_t tokens[60];
    teeny_session *s;
    teeny_session *restored = new_session(model);
    unsigned char *data;
    unsigned char *in_file;
    size_t len = 0;
    size_t file_len = 0;
    char path[4096];
    random_tokens(tokens, 60, 36);
    s = fed(model, tokens, 60);
    snprintf(path, sizeof path, "%s", path_of("saved"));
    EXPECT(teeny_session_save_file(s, NULL), TEENY_NULL_POINTER, "path: found NULL");
    FAILS(teeny_session_save_file(s, "\xff"), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_save_file(s, ""), TEENY_IO);
    FAILS(teeny_session_save_file(s, "."), TEENY_IO);
    EXPECT(teeny_session_save_file(s, "/no such folder/saved"), TEENY_IO, "no such folder");
    EXPECT(teeny_session_restore_file(s, NULL), TEENY_NULL_POINTER, "path: found NULL");
    FAILS(teeny_session_restore_file(s, "\xff"), TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_session_restore_file(s, "/no such file"), TEENY_IO, "no such file");
    FAILS(teeny_session_restore_file(s, "."), TEENY_IO);
    FAILS(teeny_session_restore_file(s, path_of("foreign")), TEENY_FORMAT);
    FAILS(teeny_session_restore_file(s, path_of("model")), TEENY_FORMAT);
    FAILS(teeny_session_restore_file(s, path_of("empty")), TEENY_FORMAT);
    CHECK(IS_FED(s, model, tokens, 60));

    OK(teeny_session_save_file(s, path));
    OK(teeny_session_restore_file(restored, path));
    CHECK(IS_FED(restored, model, tokens, 60));
    data = saved(s, &len);
    in_file = read_file(path, &file_len);
    CHECK(len == file_len && memcmp(data, in_file, len) == 0);
    /* Over a file that is there. */
    OK(teeny_session_truncate(s, 50));
    OK(teeny_session_save_file(s, path));
    OK(teeny_session_restore_file(restored, path));
    CHECK(IS_FED(restored, model, tokens, 50));
    remove(path);
    free(data);
    free(in_file);
    teeny_session_free(s);
    teeny_session_free(restored);
}

void state_group(void) {
    size_t i;
    for (i = 0; i < 2; i++) {
        teeny_model *model = load(kinds[i]);
        round_trip(model, 0);
        round_trip(model, 1);
        round_trip(model, CONTEXT);
        round_trip(model, CONTEXT + 1);
        if (!quick) {
            round_trip(model, 127);
            round_trip(model, 400);
        }
        of_a_fork(model);
        policies(model);
        damaged(model, 5);
        damaged(model, 200);
        files(model);
        teeny_model_free(model);
    }
    {
        teeny_model *model = load("model");
        refusing(model);
        teeny_model_free(model);
    }
}
