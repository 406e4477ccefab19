/* Continues a prompt:
 *
 *     generate MODEL PROMPT [MAX_TOKENS [SEED]]
 *
 * README.md says how to build it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "teeny.h"

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
    char *end_max = "", *end_seed = "";

    if (argc > 3) {
        max_tokens = strtoul(argv[3], &end_max, 10);
    }
    if (argc > 4) {
        seed = strtoul(argv[4], &end_seed, 10);
    }
    if (argc < 3 || argc > 5 || *end_max != 0 || *end_seed != 0) {
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
