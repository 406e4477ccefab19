/* How likely a model finds a text, token by token, with what it would rather have read:
 *
 *     score MODEL TEXT [TOP_N]
 *
 * README.md says how to build it.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "teeny.h"

/* Reads a number that is the whole text. */
static int read_number(const char *text, unsigned long *number) {
    char *end;

    errno = 0;
    *number = strtoul(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == 0 && errno == 0;
}

/* Prints a token in quotes, on one line whatever is in it. */
static teeny_status print_token(const teeny_model *model, uint32_t token) {
    teeny_text bytes;
    teeny_status status = teeny_model_token_bytes(model, token, &bytes);
    size_t i;

    if (status != TEENY_OK) {
        return status;
    }
    putchar('\'');
    for (i = 0; i < bytes.len; i++) {
        unsigned char c = (unsigned char)bytes.data[i];
        if (c == '\n') {
            printf("\\n");
        } else if (c < ' ' || c == 127) {
            printf("\\x%02x", (unsigned)c);
        } else {
            putchar(c);
        }
    }
    putchar('\'');
    return TEENY_OK;
}

/* One line for each token: the token, its log-probability, and the likeliest in its place. */
static teeny_status print_tokens(const teeny_model *model, const uint32_t *tokens, size_t n,
                                 const float *log_probs, size_t top_n, const uint32_t *top_tokens,
                                 const float *top_log_probs) {
    teeny_status status = TEENY_OK;
    size_t i, k;

    for (i = 0; i < n && status == TEENY_OK; i++) {
        status = print_token(model, tokens[i]);
        if (isnan(log_probs[i])) {
            printf("\t-"); /* the first token: nothing precedes it */
        } else {
            printf("\t%.4f", (double)log_probs[i]);
        }
        for (k = i * top_n; k < (i + 1) * top_n && status == TEENY_OK; k++) {
            if (top_tokens[k] != UINT32_MAX) {
                putchar('\t');
                status = print_token(model, top_tokens[k]);
                printf(" %.4f", exp((double)top_log_probs[k]));
            }
        }
        putchar('\n');
    }
    return status;
}

/* Scores a text and prints what came out. */
static teeny_status score(const teeny_model *model, const char *text, size_t top_n) {
    size_t len = strlen(text);
    size_t n = 0;
    /* A character makes one token at most. One more byte, because malloc(0) may give NULL. */
    uint32_t *tokens = calloc(len + 1, sizeof *tokens);
    float *log_probs = calloc(len + 1, sizeof *log_probs);
    uint32_t *top_tokens = calloc(len * top_n + 1, sizeof *top_tokens);
    float *top_log_probs = calloc(len * top_n + 1, sizeof *top_log_probs);
    teeny_session *session = NULL;
    teeny_score total;
    teeny_status status = TEENY_OUT_OF_MEMORY;

    if (tokens != NULL && log_probs != NULL && top_tokens != NULL && top_log_probs != NULL) {
        /* This call does all when the sums are enough. */
        status = teeny_score_text(model, text, len, &total, sizeof total);
    }
    if (status == TEENY_OK) {
        status = teeny_model_encode(model, text, len, tokens, len, &n);
    }
    if (status == TEENY_OK) {
        status = teeny_session_new(model, NULL, &session);
    }
    if (status == TEENY_OK) {
        status = teeny_session_score(session, tokens, n, log_probs, top_n, top_tokens,
                                     top_log_probs);
    }
    if (status == TEENY_OK) {
        status = print_tokens(model, tokens, n, log_probs, top_n, top_tokens, top_log_probs);
    }
    if (status == TEENY_OK) {
        printf("%zu tokens, log-probability %.4f, perplexity %.4f\n", total.n_scored,
               total.log_prob, total.perplexity);
    } else {
        fprintf(stderr, "%s: %s\n", teeny_status_name(status), teeny_last_error());
    }
    teeny_session_free(session);
    free(tokens);
    free(log_probs);
    free(top_tokens);
    free(top_log_probs);
    return status;
}

int main(int argc, char **argv) {
    teeny_model *model = NULL;
    teeny_status status;
    unsigned long top_n = 3;

    if (argc < 3 || argc > 4 || (argc == 4 && !read_number(argv[3], &top_n)) || top_n > 1000) {
        fprintf(stderr, "usage: %s MODEL TEXT [TOP_N]\n", argv[0]);
        return 2;
    }
    status = teeny_model_load(argv[1], NULL, &model);
    if (status == TEENY_OK) {
        status = score(model, argv[2], top_n);
    } else {
        fprintf(stderr, "%s: %s\n", teeny_status_name(status), teeny_last_error());
    }
    teeny_model_free(model);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "not all could be printed\n");
        return 1;
    }
    return status == TEENY_OK ? 0 : 1;
}
