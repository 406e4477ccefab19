/* Log-probabilities against the softmax of the logits of single steps, computed here in double. */
#include "check.h"

enum { N = 70, TOP = 5 };

static double log_softmax(const float *logits, uint32_t token) {
    double max = -INFINITY;
    double total = 0;
    int i;
    for (i = 0; i < VOCAB; i++) {
        max = logits[i] > max ? logits[i] : max;
    }
    for (i = 0; i < VOCAB; i++) {
        total += exp(logits[i] - max);
    }
    return logits[token] - max - log(total);
}

static int near(double found, double expected) {
    return fabs(found - expected) <= 1e-5 * (1 + fabs(expected));
}

/* One row of alternatives: the likeliest of all, in order, with their own log-probabilities. */
static void check_top(const float *logits, const uint32_t *tokens, const float *log_probs,
                      size_t n) {
    float last = INFINITY;
    size_t i;
    uint32_t token;
    size_t likelier = 0;
    for (i = 0; i < n; i++) {
        if (!CHECK(tokens[i] < VOCAB)) {
            return;
        }
        CHECK(near(log_probs[i], log_softmax(logits, tokens[i])));
        CHECK(logits[tokens[i]] <= last);
        last = logits[tokens[i]];
    }
    for (token = 0; token < VOCAB; token++) {
        likelier += logits[token] > last;
    }
    CHECK(likelier == n - 1);
}

static void of_tokens(const teeny_model *model, size_t start) {
    uint32_t tokens[N];
    float log_probs[N];
    uint32_t top_tokens[N * TOP];
    float top_log_probs[N * TOP];
    float again[N];
    teeny_session *steps = new_session(model);
    teeny_session *s = new_session(model);
    size_t i;
    random_tokens(tokens, N, 41);
    if (start > 0) {
        OK(teeny_session_feed(s, tokens, start));
        OK(teeny_session_feed(steps, tokens, start));
    }
    OK(teeny_session_score(s, tokens + start, N - start, log_probs + start, TOP,
                           top_tokens + start * TOP, top_log_probs + start * TOP));
    for (i = start; i < N; i++) {
        const float *logits = NULL;
        size_t len = 0;
        if (i == 0) {
            /* Nothing precedes it. */
            CHECK(isnan(log_probs[0]) && top_tokens[0] == UINT32_MAX && isnan(top_log_probs[0]));
        } else {
            OK(teeny_session_logits(steps, &logits, &len));
            CHECK(near(log_probs[i], log_softmax(logits, tokens[i])));
            check_top(logits, top_tokens + i * TOP, top_log_probs + i * TOP, TOP);
        }
        OK(teeny_session_decode(steps, tokens[i]));
    }
    CHECK(IS_FED(s, model, tokens, N));
    /* Without alternatives, and in pieces, to the last bit. */
    OK(teeny_session_reset(s));
    if (start > 0) {
        OK(teeny_session_feed(s, tokens, start));
    }
    for (i = start; i < N;) {
        const size_t piece = N - i < 9 ? N - i : 9;
        OK(teeny_session_score(s, tokens + i, piece, again + i, 0, NULL, NULL));
        i += piece;
    }
    CHECK(same_floats(log_probs + start + 1, again + start + 1, N - start - 1));
    teeny_session_free(s);
    teeny_session_free(steps);
}

static void refusing(const teeny_model *model) {
    static const uint32_t tokens[] = {1, 2, VOCAB};
    uint32_t many[CONTEXT + 1] = {0};
    float log_probs[CONTEXT + 1];
    uint32_t top_tokens[3] = {7, 7, 7};
    float top_log_probs[3];
    float *whole = malloc(2 * (VOCAB + 10) * sizeof *whole);
    uint32_t *whole_tokens = malloc(2 * (VOCAB + 10) * sizeof *whole_tokens);
    teeny_session *s = new_session(model);
    teeny_session *bounded = new_session_with(model, TEENY_OVERFLOW_ERROR);
    if (whole == NULL || whole_tokens == NULL) {
        exit(1);
    }
    EXPECT(teeny_session_score(s, NULL, 2, log_probs, 0, NULL, NULL), TEENY_NULL_POINTER,
           "tokens: found NULL");
    EXPECT(teeny_session_score(s, tokens, 2, NULL, 0, NULL, NULL), TEENY_NULL_POINTER,
           "log_probs: found NULL");
    EXPECT(teeny_session_score(s, tokens, 2, log_probs, 1, NULL, top_log_probs),
           TEENY_NULL_POINTER, "top_tokens: found NULL");
    EXPECT(teeny_session_score(s, tokens, 2, log_probs, 1, top_tokens, NULL), TEENY_NULL_POINTER,
           "top_log_probs: found NULL");
    FAILS(teeny_session_score(s, made_up((uintptr_t)tokens + 1), 1, log_probs, 0, NULL, NULL),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_score(s, tokens, 1, made_up((uintptr_t)log_probs + 2), 0, NULL, NULL),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_score(s, tokens, 1, log_probs, 1, made_up((uintptr_t)top_tokens + 1),
                              top_log_probs),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_score(s, tokens, 1, log_probs, 1, top_tokens,
                              made_up((uintptr_t)top_log_probs + 3)),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_score(s, tokens, SIZE_MAX, log_probs, 0, NULL, NULL),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_score(s, tokens, 2, log_probs, SIZE_MAX, top_tokens, top_log_probs),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_score(s, tokens, 0, log_probs, 0, NULL, NULL), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_session_score(s, tokens, 3, log_probs, 1, top_tokens, top_log_probs),
          TEENY_INVALID_ARGUMENT);
    CHECK(teeny_session_position(s) == 0 && top_tokens[0] == 7);
    FAILS(teeny_session_score(bounded, many, CONTEXT + 1, log_probs, 0, NULL, NULL),
          TEENY_CONTEXT_FULL);
    CHECK(teeny_session_position(bounded) == 0);
    /* More alternatives than there are: the rest is said to be none. */
    OK(teeny_session_score(s, tokens, 2, log_probs, VOCAB + 10, whole_tokens, whole));
    CHECK(whole_tokens[2 * VOCAB + 19] == UINT32_MAX && isnan(whole[2 * VOCAB + 19]));
    CHECK(whole_tokens[2 * VOCAB + 9] < VOCAB && !isnan(whole[2 * VOCAB + 9]));
    free(whole);
    free(whole_tokens);
    teeny_session_free(s);
    teeny_session_free(bounded);
}

/* The score of a later header. */
typedef struct newer {
    teeny_score score;
    size_t later;
} newer;

static void of_text(const teeny_model *model) {
    static const char text[] = "ABC\303\251DEFGHIJKLMNOPQRSTUVWXYZABCABCABCABC\303\251\303\251Q";
    const size_t len = sizeof text - 1;
    uint32_t tokens[64];
    float log_probs[64];
    size_t n = 0;
    size_t i;
    double sum = 0;
    teeny_score score;
    teeny_score untouched;
    newer grown;
    char unaligned[sizeof score + 16] = {0};
    teeny_session *s = new_session(model);
    OK(teeny_model_encode(model, text, len, tokens, 64, &n));
    CHECK(n > CONTEXT);
    OK(teeny_session_score(s, tokens, n, log_probs, 0, NULL, NULL));
    for (i = 1; i < n; i++) {
        sum += log_probs[i];
    }
    memset(&score, 7, sizeof score);
    untouched = score;
    EXPECT(teeny_score_text(model, NULL, len, &score, sizeof score), TEENY_NULL_POINTER, "text: ");
    EXPECT(teeny_score_text(model, text, len, NULL, sizeof score), TEENY_NULL_POINTER, "score: ");
    FAILS(teeny_score_text(model, text, len, (void *)(unaligned + 1), sizeof score),
          TEENY_INVALID_ARGUMENT);
    FAILS(teeny_score_text(model, text, len, &score, sizeof score - 1), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_score_text(model, text, len, &score, 0), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_score_text(model, text, len, &score, SIZE_MAX), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_score_text(model, text, SIZE_MAX, &score, sizeof score), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_score_text(model, "", 0, &score, sizeof score), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_score_text(model, "A", 1, &score, sizeof score), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_score_text(model, "A\xff", 2, &score, sizeof score), TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_score_text(model, "AB 1", 4, &score, sizeof score), TEENY_TOKENIZER, "U+0020");
    CHECK(memcmp(&score, &untouched, sizeof score) == 0);
    OK(teeny_score_text(model, text, len, &score, sizeof score));
    CHECK(score.size == sizeof score && score.n_tokens == n && score.n_scored == n - 1);
    CHECK(near(score.log_prob, sum));
    CHECK(near(score.perplexity, exp(-score.log_prob / (double)score.n_scored)));
    memset(&grown, 7, sizeof grown);
    OK(teeny_score_text(model, text, len, &grown.score, sizeof grown));
    CHECK(grown.score.size == sizeof grown && grown.later == 0);
    CHECK(grown.score.log_prob == score.log_prob);
    teeny_session_free(s);
}

void score_group(void) {
    static const char *const kinds[] = {"model", "learned"};
    size_t i;
    for (i = 0; i < 2; i++) {
        teeny_model *model = load(kinds[i]);
        of_tokens(model, 0);
        of_tokens(model, 1);
        of_tokens(model, 30);
        refusing(model);
        of_text(model);
        teeny_model_free(model);
    }
}
