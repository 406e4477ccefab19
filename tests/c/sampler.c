/* Samplers: each stage against a second implementation of what teeny.h says, draws against the
 * distribution that it gives. */
#include "check.h"

/* MOST: recent tokens that penalties may look at. */
enum { N = 8, MOST = 1 << 20 };

/* The second implementation: double precision, no sorting of equal ones needed. */
typedef struct chances {
    double logit[N];
    int out[N];
} chances;

static chances all_of(const float *logits) {
    chances c;
    int i;
    for (i = 0; i < N; i++) {
        c.logit[i] = logits[i];
        c.out[i] = isnan(logits[i]) || logits[i] == -INFINITY;
    }
    return c;
}

static void probabilities(const chances *c, double *p) {
    double max = -INFINITY;
    double total = 0;
    int i;
    for (i = 0; i < N; i++) {
        max = !c->out[i] && c->logit[i] > max ? c->logit[i] : max;
    }
    for (i = 0; i < N; i++) {
        p[i] = c->out[i] ? 0 : exp(c->logit[i] - max);
        total += p[i];
    }
    for (i = 0; i < N; i++) {
        p[i] /= total;
    }
}

/* How many remaining ones are likelier. */
static int rank_of(const chances *c, int i) {
    int rank = 0;
    int j;
    for (j = 0; j < N; j++) {
        rank += !c->out[j] && c->logit[j] > c->logit[i];
    }
    return rank;
}

static void keep_k(chances *c, int k) {
    int drop[N];
    int i;
    for (i = 0; i < N; i++) {
        drop[i] = rank_of(c, i) >= k;
    }
    for (i = 0; i < N; i++) {
        c->out[i] |= drop[i];
    }
}

static void keep_p(chances *c, double top_p) {
    double p[N];
    int drop[N];
    int i;
    int j;
    probabilities(c, p);
    for (i = 0; i < N; i++) {
        double likelier = 0;
        for (j = 0; j < N; j++) {
            likelier += p[j] > p[i] ? p[j] : 0;
        }
        drop[i] = likelier >= top_p;
    }
    for (i = 0; i < N; i++) {
        c->out[i] |= drop[i];
    }
}

static void keep_min_p(chances *c, double min_p) {
    double p[N];
    double max = 0;
    int i;
    probabilities(c, p);
    for (i = 0; i < N; i++) {
        max = p[i] > max ? p[i] : max;
    }
    for (i = 0; i < N; i++) {
        c->out[i] |= p[i] < min_p * max;
    }
}

static void heat(chances *c, double temperature) {
    int i;
    if (temperature == 0) {
        keep_k(c, 1);
        return;
    }
    for (i = 0; i < N; i++) {
        c->logit[i] /= temperature;
    }
}

static void penalise(chances *c, const uint32_t *recent, int n, double repeat, double frequency,
                     double presence) {
    int i;
    int j;
    for (i = 0; i < N; i++) {
        int times = 0;
        for (j = 0; j < n; j++) {
            times += recent[j] == (uint32_t)i;
        }
        if (times > 0) {
            c->logit[i] = c->logit[i] > 0 ? c->logit[i] / repeat : c->logit[i] * repeat;
            c->logit[i] -= times * frequency + presence;
        }
    }
}

/* Frequencies of draws against probabilities, to five standard deviations; what cannot be drawn
 * never is. */
static void agrees(const int *counts, int draws, const chances *c, int line) {
    double p[N];
    int i;
    probabilities(c, p);
    for (i = 0; i < N; i++) {
        const double spread = sqrt(p[i] * (1 - p[i]) * draws);
        const double off = fabs(counts[i] - p[i] * draws);
        if (c->out[i] ? counts[i] != 0 : off > 5 * spread + 0.5) {
            fprintf(stderr, "sampler.c:%d: token %d drawn %d times, expected %.1f\n", line, i,
                    counts[i], p[i] * draws);
            check(0, "frequencies", __FILE__, line);
        }
    }
}

static int draws(void) {
    return quick ? 300 : 20000;
}

/* Draws from one sampler, which has no stage that remembers. */
#define DRAWS_AS(sampler, logits, c) draws_as(sampler, logits, c, __LINE__)
static void draws_as(teeny_sampler *sampler, const float *logits, const chances *c, int line) {
    int counts[N] = {0};
    const int n = draws();
    int i;
    for (i = 0; i < n; i++) {
        uint32_t token = N;
        expect(teeny_sampler_sample(sampler, logits, N, &token), TEENY_OK, "", "sample", __FILE__,
               line);
        if (token >= N) {
            check(0, "token < N", __FILE__, line);
            return;
        }
        counts[token]++;
    }
    agrees(counts, n, c, line);
}

static teeny_sampler *chain(uint64_t seed) {
    teeny_sampler *sampler = NULL;
    MUST(teeny_sampler_new_chain(seed, &sampler));
    return sampler;
}

/* Probabilities 0.02 to 0.3, no two the same, in no order. */
static const float *example(void) {
    static const double p[N] = {0.05, 0.25, 0.02, 0.3, 0.11, 0.04, 0.16, 0.07};
    static float logits[N];
    int i;
    for (i = 0; i < N; i++) {
        logits[i] = (float)log(p[i]) + 3;
    }
    return logits;
}

static void each_stage(void) {
    const float *logits = example();
    teeny_sampler *s = chain(1);
    chances c = all_of(logits);
    int k;
    int i;
    static const double ps[] = {0.001, 0.29, 0.31, 0.5, 0.7, 0.83, 0.99, 1.0};
    static const double mins[] = {0.0, 0.06, 0.15, 0.2, 0.5, 0.9, 1.0};
    static const double temperatures[] = {0.0, 0.1, 0.5, 1.0, 3.0, 100.0};
    DRAWS_AS(s, logits, &c);
    teeny_sampler_free(s);

    for (k = 1; k <= N + 1; k++) {
        s = chain(2);
        c = all_of(logits);
        OK(teeny_sampler_add_top_k(s, (size_t)k));
        keep_k(&c, k);
        DRAWS_AS(s, logits, &c);
        teeny_sampler_free(s);
    }
    for (i = 0; i < (int)(sizeof ps / sizeof ps[0]); i++) {
        s = chain(3);
        c = all_of(logits);
        OK(teeny_sampler_add_top_p(s, (float)ps[i]));
        keep_p(&c, ps[i]);
        DRAWS_AS(s, logits, &c);
        teeny_sampler_free(s);
    }
    for (i = 0; i < (int)(sizeof mins / sizeof mins[0]); i++) {
        s = chain(4);
        c = all_of(logits);
        OK(teeny_sampler_add_min_p(s, (float)mins[i]));
        keep_min_p(&c, mins[i]);
        DRAWS_AS(s, logits, &c);
        teeny_sampler_free(s);
    }
    for (i = 0; i < (int)(sizeof temperatures / sizeof temperatures[0]); i++) {
        s = chain(5);
        c = all_of(logits);
        OK(teeny_sampler_add_temperature(s, (float)temperatures[i]));
        heat(&c, temperatures[i]);
        DRAWS_AS(s, logits, &c);
        teeny_sampler_free(s);
    }
}

/* Each stage sees what the one before has left. */
static void order_matters(void) {
    const float *logits = example();
    chances hot_first = all_of(logits);
    chances hot_last = all_of(logits);
    chances renormalised = all_of(logits);
    teeny_sampler *s = chain(6);
    OK(teeny_sampler_add_temperature(s, 50));
    OK(teeny_sampler_add_top_p(s, 0.6F));
    heat(&hot_first, 50);
    keep_p(&hot_first, 0.6);
    DRAWS_AS(s, logits, &hot_first);
    teeny_sampler_free(s);

    s = chain(6);
    OK(teeny_sampler_add_top_p(s, 0.6F));
    OK(teeny_sampler_add_temperature(s, 50));
    keep_p(&hot_last, 0.6);
    heat(&hot_last, 50);
    DRAWS_AS(s, logits, &hot_last);
    CHECK(memcmp(hot_first.out, hot_last.out, sizeof hot_last.out) != 0);
    teeny_sampler_free(s);

    /* Of the two likeliest, 0.3 and 0.25, the first alone reaches 0.54: 0.3 of 0.55. */
    s = chain(7);
    OK(teeny_sampler_add_top_k(s, 2));
    OK(teeny_sampler_add_top_p(s, 0.54F));
    keep_k(&renormalised, 2);
    keep_p(&renormalised, 0.54);
    CHECK(renormalised.out[1] && !renormalised.out[3]);
    DRAWS_AS(s, logits, &renormalised);
    /* The same kind of stage twice. */
    OK(teeny_sampler_add_temperature(s, 2));
    OK(teeny_sampler_add_temperature(s, 2));
    OK(teeny_sampler_add_top_k(s, 1));
    DRAWS_AS(s, logits, &renormalised);
    teeny_sampler_free(s);
}

/* Penalties remember, so each draw has a sampler of its own. */
static void penalties_of(size_t last_n, float repeat, float frequency, float presence) {
    static const uint32_t seen[] = {2, 3, 3, 6, 1, 3, 7, 7};
    const int n_seen = sizeof seen / sizeof seen[0];
    static const float logits[N] = {0.4F, 1.5F, -0.5F, 2.1F, 0.0F, -1.0F, 1.0F, 0.7F};
    const int first = last_n < (size_t)n_seen ? n_seen - (int)last_n : 0;
    const int n = quick ? 200 : 4000;
    chances c = all_of(logits);
    int counts[N] = {0};
    uint32_t best = N;
    uint32_t expected = 0;
    teeny_sampler *s;
    int i;
    int j;
    penalise(&c, seen + first, n_seen - first, repeat, frequency, presence);
    for (i = 0; i < n; i++) {
        uint32_t token = N;
        s = chain((uint64_t)i);
        OK(teeny_sampler_add_penalties(s, last_n, repeat, frequency, presence));
        for (j = 0; j < n_seen; j++) {
            OK(teeny_sampler_accept(s, seen[j]));
        }
        OK(teeny_sampler_sample(s, logits, N, &token));
        counts[token < N ? token : 0]++;
        teeny_sampler_free(s);
    }
    agrees(counts, n, &c, __LINE__);
    s = chain(0);
    OK(teeny_sampler_add_penalties(s, last_n, repeat, frequency, presence));
    OK(teeny_sampler_add_temperature(s, 0));
    for (j = 0; j < n_seen; j++) {
        OK(teeny_sampler_accept(s, seen[j]));
    }
    OK(teeny_sampler_sample(s, logits, N, &best));
    for (i = 1; i < N; i++) {
        expected = c.logit[i] > c.logit[expected] ? (uint32_t)i : expected;
    }
    CHECK(best == expected);
    teeny_sampler_free(s);
}

static void penalties(void) {
    penalties_of(64, 1, 0, 0);
    penalties_of(0, 2, 1, 1);
    penalties_of(64, 2, 0, 0);
    penalties_of(64, 0.5F, 0, 0);
    penalties_of(64, 1, 0.4F, 0);
    penalties_of(64, 1, 0, 0.9F);
    penalties_of(64, 1, -0.3F, -0.2F);
    penalties_of(64, 1.3F, 0.2F, 0.1F);
    penalties_of(3, 1.5F, 0.5F, 0.25F);
    penalties_of(8, 1.5F, 0.5F, 0.25F);
    penalties_of(MOST, 1.5F, 0.5F, 0.25F);
}

/* What was drawn counts as seen; worked out by hand. */
static void draws_are_remembered(void) {
    static const float logits[] = {3, 2, -4};
    static const uint32_t expected[] = {0, 1, 0, 1};
    teeny_sampler *s = chain(0);
    int i;
    OK(teeny_sampler_add_penalties(s, 1, 2, 0, 0));
    OK(teeny_sampler_add_temperature(s, 0));
    for (i = 0; i < 4; i++) {
        uint32_t token = 9;
        OK(teeny_sampler_sample(s, logits, 3, &token));
        CHECK(token == expected[i]);
    }
    teeny_sampler_free(s);
    /* 3, 2 and -4: a presence of 10 once for each, then all are as before. */
    s = chain(0);
    OK(teeny_sampler_add_penalties(s, 64, 1, 0, 10));
    OK(teeny_sampler_add_temperature(s, 0));
    for (i = 0; i < 4; i++) {
        uint32_t token = 9;
        OK(teeny_sampler_sample(s, logits, 3, &token));
        CHECK(token == (uint32_t)(i % 3));
    }
    OK(teeny_sampler_reset(s));
    for (i = 0; i < 2; i++) {
        uint32_t token = 9;
        OK(teeny_sampler_sample(s, logits, 3, &token));
        CHECK(token == (uint32_t)i);
    }
    teeny_sampler_free(s);
}

static void biases(void) {
    const float *logits = example();
    teeny_logit_bias forbid[] = {{3, -INFINITY}, {1, 0.5F}, {6, -1.25F}};
    teeny_logit_bias all[N];
    teeny_logit_bias elsewhere = {N + 5, 3};
    teeny_logit_bias nan_bias = {0, NAN};
    chances c = all_of(logits);
    uint32_t token = 77;
    teeny_sampler *s = chain(8);
    uint32_t i;
    OK(teeny_sampler_add_logit_bias(s, forbid, 3));
    /* The array is the caller's again. */
    memset(forbid, 0, sizeof forbid);
    c.out[3] = 1;
    c.logit[1] += 0.5;
    c.logit[6] -= 1.25;
    DRAWS_AS(s, logits, &c);
    FAILS(teeny_sampler_add_logit_bias(s, &nan_bias, 1), TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_sampler_add_logit_bias(s, NULL, 1), TEENY_NULL_POINTER, "biases: found NULL");
    FAILS(teeny_sampler_add_logit_bias(s, made_up((uintptr_t)all + 1), 1), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_logit_bias(s, all, SIZE_MAX), TEENY_INVALID_ARGUMENT);
    DRAWS_AS(s, logits, &c);
    for (i = 0; i < N; i++) {
        all[i].token = i;
        all[i].bias = -INFINITY;
    }
    OK(teeny_sampler_add_logit_bias(s, all, N));
    EXPECT(teeny_sampler_sample(s, logits, N, &token), TEENY_INVALID_ARGUMENT, "logit_bias");
    teeny_sampler_free(s);
    /* A token that the logits do not have is a mistake that shows with the first of them. */
    s = chain(8);
    OK(teeny_sampler_add_logit_bias(s, &elsewhere, 1));
    EXPECT(teeny_sampler_sample(s, logits, N, &token), TEENY_INVALID_ARGUMENT, "token 13");
    CHECK(token == 77);
    teeny_sampler_free(s);
}

static void same_draws(teeny_sampler *a, teeny_sampler *b, int n, int same) {
    int differ = 0;
    int i;
    for (i = 0; i < n; i++) {
        uint32_t x = 77;
        uint32_t y = 78;
        OK(teeny_sampler_sample(a, example(), N, &x));
        OK(teeny_sampler_sample(b, example(), N, &y));
        differ += x != y;
    }
    CHECK(same ? differ == 0 : differ > 0);
}

static void copies_and_seeds(void) {
    teeny_sampler_options o = sampler_options();
    teeny_sampler *a = NULL;
    teeny_sampler *b = NULL;
    teeny_sampler *c = chain(0);
    uint32_t token;
    int i;
    MUST(teeny_sampler_new(NULL, &a));
    MUST(teeny_sampler_new(&o, &b));
    same_draws(a, b, 50, 1);
    OK(teeny_sampler_reset(a));
    OK(teeny_sampler_add_penalties(c, 64, 1, 0, 0));
    OK(teeny_sampler_add_top_k(c, 40));
    OK(teeny_sampler_add_top_p(c, 0.95F));
    OK(teeny_sampler_add_min_p(c, 0.05F));
    OK(teeny_sampler_add_temperature(c, 0.8F));
    same_draws(a, c, 50, 1);
    OK(teeny_sampler_reset(a));
    OK(teeny_sampler_reset(b));
    same_draws(a, b, 50, 1);
    teeny_sampler_free(a);
    teeny_sampler_free(b);
    teeny_sampler_free(c);

    /* A clone has the recent tokens and the random numbers, and goes its own way. */
    o.repeat_penalty = 1.7F;
    o.frequency_penalty = 0.3F;
    o.presence_penalty = 0.2F;
    o.penalty_last_n = 5;
    o.seed = 99;
    a = b = c = NULL;
    MUST(teeny_sampler_new(&o, &a));
    for (i = 0; i < 20; i++) {
        OK(teeny_sampler_sample(a, example(), N, &token));
    }
    MUST(teeny_sampler_clone(a, &b));
    MUST(teeny_sampler_clone(a, &c));
    CHECK(b != a && c != b);
    same_draws(a, b, 40, 1);
    OK(teeny_sampler_add_top_k(a, 1));
    teeny_sampler_free(a);
    MUST(teeny_sampler_clone(c, &a));
    same_draws(a, c, 40, 1);
    OK(teeny_sampler_sample(a, example(), N, &token));
    OK(teeny_sampler_accept(c, 1));
    same_draws(a, c, 40, 0);
    teeny_sampler_free(a);
    teeny_sampler_free(b);
    teeny_sampler_free(c);

    a = chain(1);
    b = chain((uint64_t)1 << 32 | 1);
    same_draws(a, b, 40, 0);
    teeny_sampler_free(a);
    teeny_sampler_free(b);
}

static void greedy(void) {
    static const float logits[] = {1, 3, 3, NAN, -INFINITY};
    static const float infinite[] = {1, INFINITY, 3.4e38F};
    static const float tiny[] = {-3.4e38F, -INFINITY, NAN};
    teeny_sampler *s = NULL;
    uint32_t token = 77;
    MUST(teeny_sampler_new_greedy(&s));
    OK(teeny_sampler_sample(s, logits, 5, &token));
    CHECK(token == 1);
    OK(teeny_sampler_sample(s, infinite, 3, &token));
    CHECK(token == 1);
    OK(teeny_sampler_sample(s, tiny, 3, &token));
    CHECK(token == 0);
    teeny_sampler_free(s);
}

static void hostile_logits(void) {
    static const float hostile[N] = {NAN, INFINITY, -INFINITY, 3.4e38F, -3.4e38F, 0, -0.0F, 1};
    static const float none[] = {NAN, -INFINITY, -NAN};
    static const float temperatures[] = {0, 1e-40F, 1e-3F, 1, 100};
    static const float repeats[] = {0.01F, 1, 100};
    int t;
    int r;
    for (t = 0; t < 5; t++) {
        for (r = 0; r < 3; r++) {
            teeny_sampler_options o = sampler_options();
            teeny_sampler *s = NULL;
            teeny_sampler *other = NULL;
            uint32_t token = 77;
            uint32_t expected = 78;
            int i;
            o.temperature = temperatures[t];
            o.repeat_penalty = repeats[r];
            o.frequency_penalty = 0.5F;
            o.top_p = 0.999F;
            o.min_p = 0;
            MUST(teeny_sampler_new(&o, &s));
            for (i = 0; i < 20; i++) {
                OK(teeny_sampler_sample(s, hostile, N, &token));
                CHECK(token < N && token != 0 && token != 2);
            }
            MUST(teeny_sampler_clone(s, &other));
            token = 77;
            EXPECT(teeny_sampler_sample(s, none, 3, &token), TEENY_INVALID_ARGUMENT, "logits");
            FAILS(teeny_sampler_sample(s, none, 0, &token), TEENY_INVALID_ARGUMENT);
            EXPECT(teeny_sampler_sample(s, NULL, 3, &token), TEENY_NULL_POINTER, "logits: found");
            EXPECT(teeny_sampler_sample(s, hostile, N, NULL), TEENY_NULL_POINTER, "token: found");
            FAILS(teeny_sampler_sample(s, made_up((uintptr_t)hostile + 1), 3, &token),
                  TEENY_INVALID_ARGUMENT);
            FAILS(teeny_sampler_sample(s, hostile, N, made_up((uintptr_t)&token + 1)),
                  TEENY_INVALID_ARGUMENT);
            FAILS(teeny_sampler_sample(s, hostile, SIZE_MAX, &token), TEENY_INVALID_ARGUMENT);
            CHECK(token == 77);
            /* A failed draw is none: the next is as if it had not been tried. */
            OK(teeny_sampler_sample(s, example(), N, &token));
            OK(teeny_sampler_sample(other, example(), N, &expected));
            CHECK(token == expected);
            teeny_sampler_free(s);
            teeny_sampler_free(other);
        }
    }
}

/* The options of a later header. */
typedef struct newer {
    teeny_sampler_options options;
    size_t later;
} newer;

static void options(void) {
    teeny_sampler *const untouched = made_up(7);
    teeny_sampler *s = untouched;
    teeny_sampler_options o;
    teeny_sampler_options before;
    newer grown;
    char unaligned[sizeof o + 16] = {0};
    memset(&o, 7, sizeof o);
    before = o;
    EXPECT(teeny_sampler_options_init(NULL, sizeof o), TEENY_NULL_POINTER, "options");
    EXPECT(teeny_sampler_options_init(&o, 0), TEENY_INVALID_ARGUMENT, "size: found 0");
    EXPECT(teeny_sampler_options_init(&o, sizeof o - 1), TEENY_INVALID_ARGUMENT, "size");
    EXPECT(teeny_sampler_options_init(&o, SIZE_MAX), TEENY_INVALID_ARGUMENT, "size");
    CHECK(memcmp(&o, &before, sizeof o) == 0);
    o = sampler_options();
    CHECK(o.size == sizeof o && o.seed == 0 && o.top_k == 40 && o.penalty_last_n == 64);
    CHECK(o.temperature == 0.8F && o.top_p == 0.95F && o.min_p == 0.05F);
    CHECK(o.repeat_penalty == 1 && o.frequency_penalty == 0 && o.presence_penalty == 0);
    memset(&grown, 7, sizeof grown);
    OK(teeny_sampler_options_init(&grown.options, sizeof grown));
    CHECK(grown.options.size == sizeof grown && grown.later == 0);
    grown.later = 1;
    EXPECT(teeny_sampler_new(&grown.options, &s), TEENY_INVALID_ARGUMENT, "older than");
    EXPECT(teeny_sampler_new(NULL, NULL), TEENY_NULL_POINTER, "out: found NULL");
    EXPECT(teeny_sampler_new_chain(0, NULL), TEENY_NULL_POINTER, "out: found NULL");
    EXPECT(teeny_sampler_new_greedy(NULL), TEENY_NULL_POINTER, "out: found NULL");
    FAILS(teeny_sampler_new(NULL, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_new_chain(0, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_new_greedy((void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_new((void *)(unaligned + 1), &s), TEENY_INVALID_ARGUMENT);

#define REFUSED(member, value, part)                                                               \
    do {                                                                                           \
        o = sampler_options();                                                                     \
        o.member = value;                                                                          \
        EXPECT(teeny_sampler_new(&o, &s), TEENY_INVALID_ARGUMENT, part);                           \
    } while (0)
    REFUSED(size, 0, "options.size: found 0");
    REFUSED(size, sizeof o - 1, "options.size");
    REFUSED(size, SIZE_MAX, "options.size");
    REFUSED(temperature, NAN, "temperature: found NaN");
    REFUSED(temperature, -1, "temperature: found -1");
    REFUSED(temperature, INFINITY, "temperature: found inf");
    REFUSED(top_p, 0, "top_p: found 0");
    REFUSED(top_p, NAN, "top_p: found NaN");
    REFUSED(top_p, 1.5F, "top_p: found 1.5");
    REFUSED(min_p, 2, "min_p: found 2");
    REFUSED(min_p, -0.5F, "min_p: found -0.5");
    REFUSED(min_p, NAN, "min_p: found NaN");
    REFUSED(repeat_penalty, 0, "repeat_penalty: found 0");
    REFUSED(repeat_penalty, -1, "repeat_penalty: found -1");
    REFUSED(repeat_penalty, NAN, "repeat_penalty: found NaN");
    REFUSED(penalty_last_n, MOST + 1, "penalty_last_n: found 1048577");
    REFUSED(penalty_last_n, SIZE_MAX, "penalty_last_n: found");
    REFUSED(frequency_penalty, NAN, "frequency_penalty: found NaN");
    REFUSED(frequency_penalty, INFINITY, "frequency_penalty: found inf");
    REFUSED(presence_penalty, NAN, "presence_penalty: found NaN");
    REFUSED(presence_penalty, -INFINITY, "presence_penalty: found -inf");
#undef REFUSED
    CHECK(s == untouched && unaligned[1] == 0);

    s = chain(0);
    FAILS(teeny_sampler_add_temperature(s, NAN), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_temperature(s, -1), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_top_p(s, 0), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_top_p(s, NAN), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_min_p(s, 1.1F), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_min_p(s, NAN), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_penalties(s, MOST + 1, 1, 0, 0), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_penalties(s, 1, 0, 0, 0), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_penalties(s, 1, 1, NAN, 0), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_sampler_add_penalties(s, 1, 1, 0, INFINITY), TEENY_INVALID_ARGUMENT);
    {
        /* Nothing of that has become a stage. */
        chances c = all_of(example());
        DRAWS_AS(s, example(), &c);
    }
    teeny_sampler_free(s);
}

static void describing(void) {
    teeny_sampler *s = chain(7);
    char text[512];
    char small[4] = "abc";
    size_t len = 77;
    size_t whole;
    const char *k;
    OK(teeny_sampler_add_top_k(s, 3));
    OK(teeny_sampler_add_temperature(s, 0.5F));
    EXPECT(teeny_sampler_describe(s, NULL, 8, &len), TEENY_NULL_POINTER, "text: found NULL");
    EXPECT(teeny_sampler_describe(s, text, sizeof text, NULL), TEENY_NULL_POINTER, "len: found");
    FAILS(teeny_sampler_describe(s, text, sizeof text, made_up((uintptr_t)&len + 1)),
          TEENY_INVALID_ARGUMENT);
    CHECK(len == 77);
    OK(teeny_sampler_describe(s, NULL, 0, &len));
    whole = len;
    CHECK(whole > 10 && whole < sizeof text);
    len = 77;
    FAILS(teeny_sampler_describe(s, small, 3, &len), TEENY_BUFFER_TOO_SMALL);
    CHECK(len == whole && strcmp(small, "abc") == 0);
    memset(text, 0, sizeof text);
    FAILS(teeny_sampler_describe(s, text, whole - 1, &len), TEENY_BUFFER_TOO_SMALL);
    CHECK(text[0] == '\0');
    OK(teeny_sampler_describe(s, text, whole, &len));
    CHECK(len == whole && strlen(text) == whole);
    k = strstr(text, "top_k 3");
    CHECK(strncmp(text, "seed 7", 6) == 0 && k != NULL);
    CHECK(k != NULL && strstr(k, "temperature 0.5") != NULL);
    teeny_sampler_free(s);
}

void sampler_group(void) {
    options();
    describing();
    greedy();
    each_stage();
    order_matters();
    penalties();
    draws_are_remembered();
    biases();
    copies_and_seeds();
    hostile_logits();
}
