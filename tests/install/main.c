/* Continues a prompt: what a program that uses the installed library looks like. */
#include <stdio.h>
#include <string.h>

#include "teeny.h"

static int32_t print(void *user_data, const char *text, size_t len) {
    (void)user_data;
    return fwrite(text, 1, len, stdout) != len;
}

int main(int argc, char **argv) {
    teeny_model *model = NULL;
    int failed = argc != 3 || teeny_abi_version() != TEENY_ABI_VERSION ||
                 teeny_model_load(argv[1], NULL, &model) != TEENY_OK ||
                 teeny_generate(model, argv[2], strlen(argv[2]), NULL, NULL, print, NULL) !=
                     TEENY_OK;
    if (failed) {
        fprintf(stderr, "%s: %s\n", argv[0], teeny_last_error());
    }
    teeny_model_free(model);
    return failed;
}
