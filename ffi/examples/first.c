/* The smallest program: continues "ROMEO:" with the model that ships.
 *
 *     cargo build --release -p teeny-ffi
 *     cc -I ffi/include ffi/examples/first.c target/release/libteeny.a -lm -lpthread -ldl -o first
 *     ./first
 */
#include <stdio.h>

#include "teeny.h"

static int32_t print(void *user_data, const char *text, size_t len) {
    (void)user_data;
    return fwrite(text, 1, len, stdout) != len; /* anything but 0 stops */
}

int main(void) {
    teeny_model *model = NULL;
    int failed = teeny_model_load("data/shakespeare.safetensors", NULL, &model) != TEENY_OK ||
                 teeny_generate(model, "ROMEO:", 6, NULL, NULL, print, NULL) != TEENY_OK;
    if (failed) {
        fprintf(stderr, "%s\n", teeny_last_error());
    }
    teeny_model_free(model);
    return failed;
}
