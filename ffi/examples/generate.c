/* Continues a prompt:
 *
 *     generate MODEL PROMPT [MAX_TOKENS [SEED]]
 *
 * README.md says how to build it.
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

int main(int argc, char **argv) {
    teeny_model *model = NULL;
    teeny_sampler_options sampling;
    teeny_generate_options options;
    teeny_status status;
    unsigned long max_tokens = 256, seed = 0;

    if (argc < 3 || argc > 5 || (argc > 3 && !read_number(argv[3], &max_tokens)) ||
        (argc > 4 && !read_number(argv[4], &seed))) {
        fprintf(stderr, "usage: %s MODEL PROMPT [MAX_TOKENS [SEED]]\n", argv[0]);
        return 2;
    }
    status = teeny_model_load(argv[1], NULL, &model);
    if (status == TEENY_OK) {
        status = teeny_sampler_options_init(&sampling, sizeof sampling);
    }
    if (status == TEENY_OK) {
        status = teeny_generate_options_init(&options, sizeof options);
    }
    if (status == TEENY_OK) {
        options.max_tokens = max_tokens;
        sampling.seed = seed;
        status = teeny_generate(model, argv[2], strlen(argv[2]), &sampling, &options, print,
                                stdout);
    }
    if (status != TEENY_OK) {
        fprintf(stderr, "%s: %s\n", argv[0], teeny_last_error());
    }
    teeny_model_free(model);
    return status == TEENY_OK ? 0 : 1;
}
