/* A model inside the program itself: one file to ship, and nothing to find or to open at run time.
 *
 *     embedded [MAX_TOKENS]
 *
 * Built in the repository's root, with the library inside too:
 *
 *     cc -std=c99 -I ffi/include ffi/examples/embedded.c target/release/libteeny.a \
 *         -lm -lpthread -ldl -o embedded
 *
 * Another model: -DMODEL_FILE='"path/of/the.safetensors"'.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "teeny.h"

#ifndef MODEL_FILE
#define MODEL_FILE "data/shakespeare.safetensors"
#endif

/* The assembler copies the file into the program's read-only data, which the system loads page by
 * page as it is used and shares between processes, as it does with a mapped model file. At a
 * multiple of 64 bytes teeny uses it where it lies. */
#ifdef __APPLE__
#define SYMBOL(name) "_" name
#define READ_ONLY "__TEXT,__const"
#else
#define SYMBOL(name) name
#define READ_ONLY ".rodata"
#endif
__asm__(".pushsection " READ_ONLY "\n"
        ".balign 64\n"
        ".globl " SYMBOL("embedded_model") "\n"
        SYMBOL("embedded_model") ":\n"
        ".incbin \"" MODEL_FILE "\"\n"
        ".globl " SYMBOL("embedded_model_end") "\n"
        SYMBOL("embedded_model_end") ":\n"
        ".byte 0\n"
        ".popsection\n");
extern const unsigned char embedded_model[], embedded_model_end[];

/* Reads a number that is the whole text. */
static int read_number(const char *text, unsigned long *number) {
    char *end;

    errno = 0;
    *number = strtoul(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == 0 && errno == 0;
}

static int32_t print(void *user_data, const char *text, size_t len) {
    FILE *file = user_data;
    return fwrite(text, 1, len, file) != len || fflush(file) != 0;
}

int main(int argc, char **argv) {
    teeny_model *model = NULL;
    teeny_generate_options options;
    teeny_status status;
    unsigned long max_tokens = 256;

    if (argc > 2 || (argc == 2 && !read_number(argv[1], &max_tokens))) {
        fprintf(stderr, "usage: %s [MAX_TOKENS]\n", argv[0]);
        return 2;
    }
    status = teeny_generate_options_init(&options, sizeof options);
    if (status == TEENY_OK) {
        options.max_tokens = max_tokens;
        /* Nothing to release: the memory is there as long as the program. */
        status = teeny_model_load_memory(embedded_model,
                                         (size_t)(embedded_model_end - embedded_model), NULL, NULL,
                                         NULL, &model);
    }
    if (status == TEENY_OK) {
        status = teeny_generate(model, "ROMEO:", 6, NULL, &options, print, stdout);
    }
    if (status != TEENY_OK) {
        fprintf(stderr, "%s: %s\n", argv[0], teeny_last_error());
    }
    teeny_model_free(model);
    return status == TEENY_OK ? 0 : 1;
}
