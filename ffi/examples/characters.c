/* Many characters that begin alike: one prompt, fed once, and from there each goes its own way.
 *
 *     characters MODEL PROMPT N [MAX_TOKENS]
 *
 * A fork costs almost nothing: it shares the keys and values of what it has in common with the
 * session that it comes from, in blocks of 64 tokens. README.md says how to build it.
 */
#include <errno.h>
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

/* Prints a piece of text as soon as it is there; stops when nobody reads it any more. */
static int32_t print(void *user_data, const char *text, size_t len) {
    FILE *file = user_data;
    return fwrite(text, 1, len, file) != len || fflush(file) != 0;
}

/* Starts a session with a prompt. */
static teeny_status feed(const teeny_model *model, const char *prompt, teeny_session **session) {
    size_t len = strlen(prompt);
    uint32_t *tokens = calloc(len + 1, sizeof *tokens); /* a character is one token at most */
    size_t n = 0;
    teeny_status status = tokens == NULL ? TEENY_OUT_OF_MEMORY : TEENY_OK;

    if (status == TEENY_OK) {
        status = teeny_model_encode(model, prompt, len, tokens, len, &n);
    }
    if (status == TEENY_OK) {
        status = teeny_session_new(model, NULL, session);
    }
    if (status == TEENY_OK) {
        status = teeny_session_feed(*session, tokens, n);
    }
    free(tokens);
    return status;
}

/* Lets one character speak: a session's text from here on, drawn with a seed of its own. */
static teeny_status speak(teeny_session *session, uint64_t seed, size_t max_tokens) {
    teeny_sampler *sampler = NULL;
    teeny_sampler_options sampling;
    teeny_generate_options options;
    teeny_status status = teeny_sampler_options_init(&sampling, sizeof sampling);

    if (status == TEENY_OK) {
        sampling.seed = seed;
        status = teeny_sampler_new(&sampling, &sampler);
    }
    if (status == TEENY_OK) {
        status = teeny_generate_options_init(&options, sizeof options);
    }
    if (status == TEENY_OK) {
        options.max_tokens = max_tokens;
        /* No prompt: it goes on after what the session holds. */
        status = teeny_session_generate(session, sampler, NULL, 0, &options, print, stdout);
    }
    if (status != TEENY_OK) {
        /* Here, and not after the next call, which clears the message. */
        fprintf(stderr, "%s\n", teeny_last_error());
    }
    teeny_sampler_free(sampler);
    return status;
}

/* Forks the session `n` times and has each fork speak. */
static teeny_status speak_all(const teeny_session *begin, size_t n, size_t max_tokens) {
    teeny_session **characters = calloc(n, sizeof *characters);
    teeny_session_stats stats;
    teeny_status status = characters == NULL ? TEENY_OUT_OF_MEMORY : TEENY_OK;
    size_t i;

    for (i = 0; i < n && status == TEENY_OK; i++) {
        status = teeny_session_fork(begin, &characters[i]);
    }
    if (status != TEENY_OK) {
        fprintf(stderr, "%s: %s\n", teeny_status_name(status), teeny_last_error());
    }
    for (i = 0; i < n && status == TEENY_OK; i++) {
        printf("--- %zu ---\n", i);
        status = speak(characters[i], i, max_tokens);
        printf("\n");
    }
    for (i = 0; i < n && status == TEENY_OK; i++) {
        status = teeny_session_get_stats(characters[i], &stats, sizeof stats);
        if (status == TEENY_OK) {
            fprintf(stderr, "%zu: %zu bytes of keys and values, %zu of them shared\n", i,
                    stats.kv_bytes, stats.kv_shared_bytes);
        }
    }
    for (i = 0; characters != NULL && i < n; i++) {
        teeny_session_free(characters[i]);
    }
    free(characters);
    return status;
}

int main(int argc, char **argv) {
    teeny_model *model = NULL;
    teeny_session *begin = NULL;
    teeny_status status;
    unsigned long n = 0, max_tokens = 256;

    if (argc < 4 || argc > 5 || !read_number(argv[3], &n) || n < 1 || n > 10000 ||
        (argc > 4 && !read_number(argv[4], &max_tokens))) {
        fprintf(stderr, "usage: %s MODEL PROMPT N [MAX_TOKENS]\n", argv[0]);
        return 2;
    }
    status = teeny_model_load(argv[1], NULL, &model);
    if (status == TEENY_OK) {
        status = feed(model, argv[2], &begin);
    }
    if (status == TEENY_OK) {
        status = speak_all(begin, n, max_tokens);
    } else {
        fprintf(stderr, "%s: %s\n", teeny_status_name(status), teeny_last_error());
    }
    teeny_session_free(begin);
    teeny_model_free(model);
    return status == TEENY_OK ? 0 : 1;
}
