/*
 * teeny: small language models inside any program.
 *
 *     teeny_model *model = NULL;
 *     if (teeny_model_load("model.safetensors", &model) != TEENY_OK ||
 *         teeny_generate(model, "ROMEO:", 6, NULL, print, NULL) != TEENY_OK) {
 *         fprintf(stderr, "%s\n", teeny_last_error());
 *     }
 *     teeny_model_free(model);
 *
 * Errors. A function that can fail returns a teeny_status, and teeny_last_error() says in words what
 * went wrong. Results go to the places that the caller names, only on success. Nothing ends the
 * process, nothing is printed, and a fault inside teeny comes back as TEENY_PANIC.
 *
 * Pointers. NULL is noticed and refused wherever it is not allowed. Any other pointer must point to
 * what the function asks for, and stay valid during the call. teeny keeps no pointer beyond the
 * call. What teeny_X_load made, teeny_X_free frees, once; NULL may be freed.
 *
 * Text is UTF-8 with a length in bytes and need not end in a zero byte, unless it is said to.
 *
 * Threads. There is nothing to set up or to shut down. A function may be called on any thread; one
 * object may be used by many threads at once where the function takes it as const. Callbacks run on
 * the thread that called in. They must return: no C++ exception and no longjmp may leave them.
 *
 * Numbers never change their meaning. New status codes may come: treat each one but TEENY_OK as a
 * failure.
 */

#ifndef TEENY_H
#define TEENY_H

/* Generated from ffi/src by cbindgen; the README beside it says how. Do not edit. */

#include <stddef.h>
#include <stdint.h>

/**
 * Version of the interface that this header describes. The library has the same interface if
 * `teeny_abi_version()` returns the same number.
 */
#define TEENY_ABI_VERSION 1

/**
 * What became of a call. `teeny_last_error()` says more about all but the first.
 */
enum teeny_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It succeeded.
     */
    TEENY_OK = 0,
    /**
     * An argument that cannot work, such as a negative temperature or text that is not UTF-8.
     */
    TEENY_INVALID_ARGUMENT = 1,
    /**
     * A pointer was NULL that must not be.
     */
    TEENY_NULL_POINTER = 2,
    /**
     * A file could not be opened or read.
     */
    TEENY_IO = 3,
    /**
     * The file is no model, or a damaged one.
     */
    TEENY_FORMAT = 4,
    /**
     * Text that the model's vocabulary does not cover.
     */
    TEENY_TOKENIZER = 5,
    /**
     * More tokens than the model's context holds, where that is not to be exceeded.
     */
    TEENY_CONTEXT_FULL = 6,
    /**
     * Memory could not be allocated.
     */
    TEENY_OUT_OF_MEMORY = 7,
    /**
     * The callback asked to stop.
     */
    TEENY_CANCELLED = 8,
    /**
     * A fault in teeny. The library still works; please report the message.
     */
    TEENY_PANIC = 9,
    /**
     * A failure that has no status of its own.
     */
    TEENY_OTHER = 10,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum teeny_status teeny_status;
#else
typedef int32_t teeny_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What happens to a token for which the model's context has no room.
 */
enum teeny_overflow
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The oldest tokens are forgotten and the text goes on without end.
     */
    TEENY_OVERFLOW_SLIDE = 0,
    /**
     * The text ends there.
     */
    TEENY_OVERFLOW_STOP = 1,
    /**
     * The call fails with TEENY_CONTEXT_FULL.
     */
    TEENY_OVERFLOW_ERROR = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum teeny_overflow teeny_overflow;
#else
typedef int32_t teeny_overflow;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A loaded model. Nothing changes it, so any number of threads may use one at the same time.
 */
typedef struct teeny_model teeny_model;

/**
 * UTF-8 text of `len` bytes.
 */
typedef struct teeny_text {
    const char *data;
    size_t len;
} teeny_text;

/**
 * How to generate. `teeny_generate_options_init` fills it with the defaults; then set what is to
 * differ. Later versions of teeny may add members at the end, and programs built with this header
 * go on working.
 */
typedef struct teeny_generate_options {
    /**
     * `sizeof(teeny_generate_options)`, which says which members are there.
     */
    size_t size;
    /**
     * Most tokens to generate; SIZE_MAX for no limit. Default 256.
     */
    size_t max_tokens;
    /**
     * `n_stop` texts that end generation; the one found is not handed out. Default NULL.
     */
    const struct teeny_text *stop;
    /**
     * Default 0.
     */
    size_t n_stop;
    /**
     * Draw from this many most likely tokens only; 0 is off. Default 40.
     */
    size_t top_k;
    /**
     * The same seed, options, prompt and model give the same text on every machine. Default 0.
     */
    uint64_t seed;
    /**
     * Divides the logits: lower is safer, 0 always takes the most likely token. Default 0.8.
     */
    float temperature;
    /**
     * Draw from the most likely tokens that together reach this probability; 1 is off.
     * Default 0.95.
     */
    float top_p;
    /**
     * Draw only tokens of at least this share of the most likely one's probability; 0 is off.
     * Default 0.05.
     */
    float min_p;
    /**
     * Makes recent tokens less likely; 1 is off. Default 1.
     */
    float repeat_penalty;
    /**
     * How many tokens are recent, for `repeat_penalty`. Default 64.
     */
    uint32_t repeat_last_n;
    /**
     * A teeny_overflow. Default TEENY_OVERFLOW_SLIDE.
     */
    int32_t overflow;
} teeny_generate_options;

/**
 * Receives a piece of text as it is generated: whole UTF-8 characters, at least one, `len` bytes
 * without a zero byte at the end, valid during the call. `user_data` is what was given with the
 * callback. Return 0 to go on, anything else to stop.
 */
typedef int32_t (*teeny_text_callback)(void *user_data, const char *text, size_t len);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Version of the interface that the library has, to be compared with `TEENY_ABI_VERSION`.
 */
uint32_t teeny_abi_version(void);

/**
 * Version of the library, such as "0.1.0", ending in a zero byte. It lives as long as the library
 * is loaded.
 */
const char *teeny_version(void);

/**
 * What went wrong in the last call on this thread, in words, ending in a zero byte; empty if
 * nothing did. Never NULL.
 *
 * The text lives until this thread calls any other function of teeny but `teeny_version` and
 * `teeny_abi_version`: each call clears it, and one that fails sets it anew. Copy what is to live
 * longer.
 */
const char *teeny_last_error(void);

/**
 * Loads a model that teeny-train has exported.
 *
 * The file is mapped, not copied: loading takes the same short time for every size, and processes
 * that load the same file share its memory. While the model lives, the file may be deleted or
 * replaced by renaming another one to its name, but it must not be overwritten or shortened. The
 * file may come from anyone: whatever is wrong with it is found here.
 *
 * `path` is UTF-8 that ends in a zero byte. `*out` is set on success; `teeny_model_free` frees it.
 *
 * Fails with TEENY_IO for a file that cannot be opened, TEENY_FORMAT for one that is no model.
 */
teeny_status teeny_model_load(const char *path, struct teeny_model **out);

/**
 * Frees a model. NULL is fine. No call on another thread may be using it.
 */
void teeny_model_free(struct teeny_model *model);

/**
 * Number of tokens in the vocabulary; their ids are below it. 0 for NULL.
 */
size_t teeny_model_vocab_size(const struct teeny_model *model);

/**
 * Number of tokens that the model looks back on, its context length. 0 for NULL.
 */
size_t teeny_model_max_seq_len(const struct teeny_model *model);

/**
 * Number of parameters. 0 for NULL.
 */
size_t teeny_model_n_params(const struct teeny_model *model);

/**
 * Fills options with the defaults. `size` is `sizeof(teeny_generate_options)`.
 *
 * Fails with TEENY_INVALID_ARGUMENT for a size that no version of the options has.
 */
teeny_status teeny_generate_options_init(struct teeny_generate_options *options, size_t size);

/**
 * Continues a prompt and hands each piece of the new text to `callback`, on this thread.
 *
 * `prompt` is UTF-8 of `prompt_len` bytes, at least one character, each in the model's vocabulary.
 * `options` may be NULL for the defaults. `callback` may call teeny; `user_data` is passed through
 * to it.
 *
 * Fails with TEENY_TOKENIZER for a character that the model does not know, TEENY_CANCELLED when
 * the callback asked to stop, TEENY_CONTEXT_FULL as `overflow` says and for a prompt longer than
 * the context unless that slides. What was handed out before a failure is good text.
 */
teeny_status teeny_generate(const struct teeny_model *model,
                            const char *prompt,
                            size_t prompt_len,
                            const struct teeny_generate_options *options,
                            teeny_text_callback callback,
                            void *user_data);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TEENY_H */
