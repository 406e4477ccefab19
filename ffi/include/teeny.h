/*
 * teeny: small language models inside any program.
 *
 *     teeny_model *model = NULL;
 *     if (teeny_model_load("model.safetensors", NULL, &model) != TEENY_OK ||
 *         teeny_generate(model, "ROMEO:", 6, NULL, NULL, print, NULL) != TEENY_OK) {
 *         fprintf(stderr, "%s\n", teeny_last_error());
 *     }
 *     teeny_model_free(model);
 *
 * Errors. A function that can fail returns a teeny_status, and teeny_last_error() says in words what
 * went wrong. Results go to the places that the caller names, only on success. Nothing ends the
 * process, nothing is printed, and a fault inside teeny comes back as TEENY_PANIC.
 *
 * Objects. A pointer to a teeny_model, teeny_session, teeny_sampler or teeny_stream is a handle: it
 * is never followed, only looked up. One that was freed, is of another type or was never made by
 * teeny gives TEENY_INVALID_HANDLE. What teeny_X_new, _load, _fork or _clone made, teeny_X_free frees;
 * NULL may be freed. Objects keep alive what they need, so the order of freeing does not matter, and
 * freeing is allowed in callbacks too.
 *
 * Other pointers. NULL is noticed and refused wherever it is not allowed. Any other pointer must
 * point to what the function asks for, and stay valid during the call. teeny keeps none of them
 * beyond the call, except where a function says so.
 *
 * Text is UTF-8 with a length in bytes and need not end in a zero byte, unless it is said to.
 *
 * Threads. There is nothing to set up or to shut down. A function may be called on any thread. A
 * model may be used by many threads at once; a session, sampler or stream by one call at a time, and
 * a second one at the same time gives TEENY_BUSY. Callbacks run on the thread that called in. They
 * must return: no C++ exception and no longjmp may leave them.
 *
 * Numbers never change their meaning, and functions and struct members never change or go as long as
 * TEENY_ABI_VERSION is the same. New status codes may come: treat each one but TEENY_OK as a failure.
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
     * A file could not be opened, read or written.
     */
    TEENY_IO = 3,
    /**
     * A file or memory that holds no model or no saved session, or a damaged one.
     */
    TEENY_FORMAT = 4,
    /**
     * Text or tokens that the model's vocabulary does not cover.
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
     * A callback or `teeny_session_cancel` asked to stop.
     */
    TEENY_CANCELLED = 8,
    /**
     * A fault in teeny. The library still works; what the fault has interrupted gives this status
     * until it is reset or freed. Please report the message.
     */
    TEENY_PANIC = 9,
    /**
     * A failure that has no status of its own.
     */
    TEENY_OTHER = 10,
    /**
     * An object that is freed, of another type, or none of teeny's.
     */
    TEENY_INVALID_HANDLE = 11,
    /**
     * The object is in use: by a call on another thread, or by the one whose callback this is.
     */
    TEENY_BUSY = 12,
    /**
     * The buffer is too small for the result, whose length was written; nothing else was.
     */
    TEENY_BUFFER_TOO_SMALL = 13,
    /**
     * There is nothing of this key or index.
     */
    TEENY_NOT_FOUND = 14,
    /**
     * This build of the library or this machine lacks what was asked for.
     */
    TEENY_UNSUPPORTED = 15,
    /**
     * A saved session of another model.
     */
    TEENY_MISMATCH = 16,
    /**
     * A GPU failed while it was in use. What it was doing has not happened; if the device is lost, so
     * are the models and sessions on it, each of whose calls gives this status until they are freed.
     */
    TEENY_DEVICE = 17,
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
     * Generating ends there; feeding fails with TEENY_CONTEXT_FULL.
     */
    TEENY_OVERFLOW_STOP = 1,
    /**
     * Both fail with TEENY_CONTEXT_FULL.
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
 * Element types of weights.
 */
enum teeny_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * As the file has them.
     */
    TEENY_DTYPE_AS_STORED = 0,
    /**
     * Single precision.
     */
    TEENY_DTYPE_F32 = 1,
    /**
     * Half precision.
     */
    TEENY_DTYPE_F16 = 2,
    /**
     * The upper halves of single precision.
     */
    TEENY_DTYPE_BF16 = 3,
    /**
     * Matrices in blocks of 8 bits.
     */
    TEENY_DTYPE_Q8 = 4,
    /**
     * Matrices of the layers in blocks of 4 bits, embedding and output projection in blocks of 8.
     */
    TEENY_DTYPE_Q4 = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum teeny_dtype teeny_dtype;
#else
typedef int32_t teeny_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How the sessions of a model on the CPU store keys and values.
 */
enum teeny_kv_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Single precision, as they are computed.
     */
    TEENY_KV_F32 = 0,
    /**
     * Half precision: half the memory, almost the same logits.
     */
    TEENY_KV_F16 = 1,
    /**
     * 8 bits with a scale for each head and position: about a quarter of the memory, and logits that
     * differ by about a hundredth.
     */
    TEENY_KV_Q8 = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum teeny_kv_dtype teeny_kv_dtype;
#else
typedef int32_t teeny_kv_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How much a message matters.
 */
enum teeny_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * A fault in teeny.
     */
    TEENY_LOG_ERROR = 1,
    /**
     * Something works, but not as well as it could.
     */
    TEENY_LOG_WARN = 2,
    /**
     * What was loaded.
     */
    TEENY_LOG_INFO = 3,
    /**
     * Every call that fails, with its message.
     */
    TEENY_LOG_DEBUG = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum teeny_log_level teeny_log_level;
#else
typedef int32_t teeny_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Why generating ended.
 */
enum teeny_end_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It has not ended, or never begun.
     */
    TEENY_END_NONE = 0,
    /**
     * There are as many tokens as asked for.
     */
    TEENY_END_LENGTH = 1,
    /**
     * A stop text was found.
     */
    TEENY_END_STOP_TEXT = 2,
    /**
     * The context is full, and the session's overflow is TEENY_OVERFLOW_STOP.
     */
    TEENY_END_CONTEXT_FULL = 3,
    /**
     * A callback or `teeny_session_cancel` asked for it.
     */
    TEENY_END_CANCELLED = 4,
    /**
     * The call failed.
     */
    TEENY_END_FAILED = 5,
    /**
     * The model drew a token that ends a text.
     */
    TEENY_END_TOKEN = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum teeny_end_reason teeny_end_reason;
#else
typedef int32_t teeny_end_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A loaded model. Nothing changes it, so any number of threads may use one at the same time.
 */
typedef struct teeny_model teeny_model;

/**
 * Draws tokens: a chain of stages that change logits or drop tokens, in the order in which they
 * were added, and then a draw from what is left. Used by one call at a time; a second one at the
 * same time fails with TEENY_BUSY.
 */
typedef struct teeny_sampler teeny_sampler;

/**
 * One sequence of tokens that a model has seen. It keeps its model alive. Used by one call at a
 * time, on any thread; a second one at the same time fails with TEENY_BUSY.
 */
typedef struct teeny_session teeny_session;

/**
 * Text that is being generated, for programs that ask for the next piece instead of being called.
 * Used by one call at a time, on any thread; a second one at the same time fails with TEENY_BUSY.
 */
typedef struct teeny_stream teeny_stream;

/**
 * Receives a log message: UTF-8 of `len` bytes without a zero byte at the end, valid during the
 * call. It runs on the thread whose call has something to say. It may call teeny; nothing is
 * logged meanwhile.
 */
typedef void (*teeny_log_callback)(void *user_data, int32_t level, const char *message, size_t len);

/**
 * Is told how much of a model is loaded, from 0 to 1, at least at the beginning and at the end.
 * Return 0 to go on, anything else to stop.
 */
typedef int32_t (*teeny_progress_callback)(void *user_data, float done);

/**
 * How to load a model. `teeny_model_options_init` fills it with the defaults; then set what is to
 * differ. Later versions of teeny may add members at the end, and programs built with this header
 * go on working.
 */
typedef struct teeny_model_options {
    /**
     * `sizeof(teeny_model_options)`, which says which members are there.
     */
    size_t size;
    /**
     * Where the model runs, ending in a zero byte: "cpu"; "cuda" or "cuda:N" for an NVIDIA GPU, N
     * counting from 0, TEENY_UNSUPPORTED if it is not there; "auto" for the first GPU if it can run the
     * model, else the CPU; NULL is "cpu", which gives the same bits everywhere and is in no other
     * program's way. Default NULL.
     */
    const char *device;
    /**
     * Default NULL: nobody is told.
     */
    teeny_progress_callback progress;
    /**
     * Passed to `progress`. Default NULL.
     */
    void *progress_user_data;
    /**
     * A shorter context than the model's, which takes less memory; 0 keeps the model's. Default 0.
     */
    size_t max_seq_len;
    /**
     * Threads that work on one call on the CPU, the caller's included, at most 256; 0 chooses as many as
     * pay for the model's size. Loading starts them, and they end with the model. Results do not depend
     * on it. Default 0.
     */
    uint32_t threads;
    /**
     * A teeny_dtype: others than TEENY_DTYPE_AS_STORED convert the weights into memory of their
     * own. Default TEENY_DTYPE_AS_STORED.
     */
    int32_t dtype;
    /**
     * 1 maps a file; 0 reads it into memory, which is safe from others who overwrite the file.
     * Default 1.
     */
    int32_t map;
    /**
     * A teeny_kv_dtype: how sessions store keys and values. On a GPU only TEENY_KV_F32; with another one
     * "auto" is the CPU. Default TEENY_KV_F32.
     */
    int32_t kv_dtype;
    /**
     * 1 multiplies bf16 weights by the CPU's bf16 instructions (AVX512-BF16) where it has them: faster,
     * but logits then differ a little from those of other CPUs. Default 0.
     */
    int32_t fast;
    /**
     * 0.
     */
    uint32_t reserved;
} teeny_model_options;

/**
 * Is told that teeny needs the caller's memory no more.
 */
typedef void (*teeny_release_callback)(void *user_data, const void *data, size_t len);

/**
 * Text or bytes of length `len`, without a zero byte at the end.
 */
typedef struct teeny_text {
    const char *data;
    size_t len;
} teeny_text;

/**
 * The usual chain: penalties, top-k, top-p, min-p, temperature. `teeny_sampler_options_init` fills
 * it with the defaults; then set what is to differ. Later versions of teeny may add members at the
 * end, and programs built with this header go on working.
 */
typedef struct teeny_sampler_options {
    /**
     * `sizeof(teeny_sampler_options)`, which says which members are there.
     */
    size_t size;
    /**
     * The same seed, options, prompt and model give the same text on every machine. Default 0.
     */
    uint64_t seed;
    /**
     * Draw from this many most likely tokens only; 0 is off. Default 40.
     */
    size_t top_k;
    /**
     * How many of the newest tokens, the prompt's included, the penalties look at, at most 1048576.
     * Default 64.
     */
    size_t penalty_last_n;
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
     * Divides positive logits of recent tokens and multiplies negative ones; 1 is off. Default 1.
     */
    float repeat_penalty;
    /**
     * Subtracted from a token's logit for each time it is among the recent ones; 0 is off.
     * Default 0.
     */
    float frequency_penalty;
    /**
     * Subtracted once from the logit of any recent token; 0 is off. Default 0.
     */
    float presence_penalty;
} teeny_sampler_options;

/**
 * A number to be added to the logit of a token.
 */
typedef struct teeny_logit_bias {
    uint32_t token;
    /**
     * -INFINITY forbids the token.
     */
    float bias;
} teeny_logit_bias;

/**
 * How a session begins. `teeny_session_options_init` fills it with the defaults; then set what is
 * to differ. Later versions of teeny may add members at the end, and programs built with this
 * header go on working.
 */
typedef struct teeny_session_options {
    /**
     * `sizeof(teeny_session_options)`, which says which members are there.
     */
    size_t size;
    /**
     * Tokens to make room for at once, so that feeding them allocates nothing; more than the
     * context count as the context. Default 0: memory is allocated every 64 tokens.
     */
    size_t reserve;
    /**
     * A teeny_overflow. Default TEENY_OVERFLOW_SLIDE.
     */
    int32_t overflow;
    /**
     * 0.
     */
    uint32_t reserved;
} teeny_session_options;

/**
 * What a session has done and what it holds. Later versions of teeny may add members at the end,
 * and programs built with this header go on working.
 */
typedef struct teeny_session_stats {
    /**
     * `sizeof(teeny_session_stats)`, which says which members are there.
     */
    size_t size;
    /**
     * Tokens fed at once: by feed, score and as prompts.
     */
    uint64_t prefill_tokens;
    /**
     * Nanoseconds that took.
     */
    uint64_t prefill_ns;
    /**
     * Tokens fed one by one: by decode and generate.
     */
    uint64_t decode_tokens;
    /**
     * Nanoseconds that took, without sampling.
     */
    uint64_t decode_ns;
    /**
     * Nanoseconds from the beginning of the last `teeny_session_generate`, or the first
     * `teeny_stream_next` of the last stream, to its first token; 0 before any.
     */
    uint64_t first_token_ns;
    /**
     * Bytes of keys and values.
     */
    size_t kv_bytes;
    /**
     * How many of them are shared with forks.
     */
    size_t kv_shared_bytes;
    /**
     * Why the last generating ended, a teeny_end_reason.
     */
    int32_t end_reason;
    /**
     * 0.
     */
    uint32_t reserved;
} teeny_session_stats;

/**
 * When to end and what to hand out. `teeny_generate_options_init` fills it with the defaults; then
 * set what is to differ. Later versions of teeny may add members at the end, and programs built
 * with this header go on working.
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
     * `n_stop` texts of UTF-8 that end generating; the one found is not handed out. Default NULL.
     */
    const struct teeny_text *stop;
    /**
     * Default 0.
     */
    size_t n_stop;
    /**
     * 1 hands out the bytes of tokens as they are, parts of characters too; 0 waits for whole
     * characters, with U+FFFD for what is none. Default 0.
     */
    uint32_t raw_bytes;
    /**
     * 1 goes on behind a token that ends a text; 0 ends there, with TEENY_END_TOKEN. Models of characters
     * have no such token. Default 0.
     */
    uint32_t ignore_end;
} teeny_generate_options;

/**
 * Receives a piece of text as it is generated: whole UTF-8 characters (unless `raw_bytes` is set),
 * at least one byte, `len` bytes without a zero byte at the end, valid during the call. `user_data`
 * is what was given with the callback. Return 0 to go on, anything else to stop.
 */
typedef int32_t (*teeny_text_callback)(void *user_data, const char *text, size_t len);

/**
 * How likely a text is. Later versions of teeny may add members at the end, and programs built with
 * this header go on working.
 */
typedef struct teeny_score {
    /**
     * `sizeof(teeny_score)`, which says which members are there.
     */
    size_t size;
    /**
     * Tokens of the text.
     */
    size_t n_tokens;
    /**
     * Tokens that something precedes: all but the first.
     */
    size_t n_scored;
    /**
     * Sum of the natural logarithms of their probabilities.
     */
    double log_prob;
    /**
     * exp(-log_prob / n_scored)
     */
    double perplexity;
} teeny_score;

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
 * The library in one line for a report: its version, what it was built for, its backends, and the
 * instruction sets that it has found on this machine, the one that it uses last. It ends in a zero
 * byte and lives as long as the library is loaded.
 */
const char *teeny_build_info(void);

/**
 * Sets where log messages of `level` (a teeny_log_level) and below go, for the whole process;
 * `callback` NULL switches logging off, as it is at first. `user_data` is passed to each call, on
 * any thread that uses teeny. A call on another thread that has begun already may still reach the
 * callback that was set before.
 */
teeny_status teeny_set_log_callback(int32_t level, teeny_log_callback callback, void *user_data);

/**
 * Name of a status, such as "TEENY_IO", ending in a zero byte; "unknown status" for a number that
 * is none. It lives as long as the library is loaded.
 */
const char *teeny_status_name(int32_t status);

/**
 * What went wrong in the last call on this thread, in words, ending in a zero byte; empty if
 * nothing did. Never NULL.
 *
 * The text lives until this thread calls any other function of teeny but `teeny_version`,
 * `teeny_abi_version`, `teeny_build_info` and `teeny_status_name`: each call clears it, and one that
 * fails sets it anew. Copy what is to live longer.
 */
const char *teeny_last_error(void);

/**
 * Number of objects that are not freed, of all types together: 0 at the end of a program that
 * forgets none. (Tools that look for lost memory do not see a forgotten object, because the library
 * still knows it.)
 */
size_t teeny_object_count(void);

/**
 * Fills options with the defaults. `size` is `sizeof(teeny_model_options)`.
 *
 * Fails with TEENY_INVALID_ARGUMENT for a size that no version of the options has.
 */
teeny_status teeny_model_options_init(struct teeny_model_options *options, size_t size);

/**
 * Loads a model that teeny-train has exported. `options` may be NULL for the defaults.
 *
 * The file is mapped, not copied: loading takes the same short time for every size, and processes
 * that load the same file share its memory. While the model lives, the file may be deleted or
 * replaced by renaming another one to its name, but it must not be overwritten or shortened: set
 * `options.map` to 0 where others may do that. The file may come from anyone: whatever is wrong with
 * it is found here.
 *
 * `path` is UTF-8 that ends in a zero byte. `*out` is set on success; `teeny_model_free` frees it.
 *
 * Fails with TEENY_IO for a file that cannot be opened, TEENY_FORMAT for one that is no model,
 * TEENY_UNSUPPORTED for a device that is not there, TEENY_CANCELLED when the progress callback asked
 * to stop.
 */
teeny_status teeny_model_load(const char *path,
                              const struct teeny_model_options *options,
                              struct teeny_model **out);

/**
 * Loads a model from `len` bytes of memory that hold the contents of a model file, such as an array
 * in the program itself. `options` may be NULL for the defaults; `options.map` does not matter.
 *
 * The memory is used where it lies if `data` is a multiple of 4 (64 is best), else it is copied. It
 * must not change until `release` is called with `user_data`, `data` and `len`: once, as soon as
 * teeny needs it no more, which is when the model and its last session are freed, on the thread that
 * frees the last of them, or during this call if the bytes were copied or converted. `release` may
 * be NULL, for memory that is always there. If the load fails it is not called, and the memory is
 * the caller's as before.
 *
 * `*out` is set on success; `teeny_model_free` frees it. Fails as `teeny_model_load`.
 */
teeny_status teeny_model_load_memory(const void *data,
                                     size_t len,
                                     teeny_release_callback release,
                                     void *user_data,
                                     const struct teeny_model_options *options,
                                     struct teeny_model **out);

/**
 * Frees a model. NULL is fine. Sessions of it keep it alive, so the order does not matter.
 */
void teeny_model_free(struct teeny_model *model);

/**
 * Number of tokens in the vocabulary; their ids are below it. 0 for what is no model.
 */
size_t teeny_model_vocab_size(const struct teeny_model *model);

/**
 * Number of tokens that the model looks back on, its context length. 0 for what is no model.
 */
size_t teeny_model_max_seq_len(const struct teeny_model *model);

/**
 * Width of the model: how many numbers `teeny_session_hidden` gives. 0 for what is no model.
 */
size_t teeny_model_n_embd(const struct teeny_model *model);

/**
 * Number of parameters. 0 for what is no model.
 */
size_t teeny_model_n_params(const struct teeny_model *model);

/**
 * Bytes of the weights, whether they are mapped, the caller's or teeny's own. 0 for what is no
 * model.
 */
size_t teeny_model_memory_used(const struct teeny_model *model);

/**
 * Number of entries of the file's metadata: its configuration, its vocabulary, where it comes from.
 * 0 for what is no model.
 */
size_t teeny_model_metadata_count(const struct teeny_model *model);

/**
 * An entry of the metadata, in the order of the keys. Both texts are UTF-8 and the model's: they
 * live as long as it or a session of it.
 *
 * Fails with TEENY_NOT_FOUND from index `teeny_model_metadata_count` on.
 */
teeny_status teeny_model_metadata_at(const struct teeny_model *model,
                                     size_t index,
                                     struct teeny_text *key,
                                     struct teeny_text *value);

/**
 * The metadata's value for a key of `key_len` bytes. It is UTF-8 and the model's: it lives as long
 * as the model or a session of it.
 *
 * Fails with TEENY_NOT_FOUND if there is none.
 */
teeny_status teeny_model_metadata_get(const struct teeny_model *model,
                                      const char *key,
                                      size_t key_len,
                                      struct teeny_text *value);

/**
 * The tokens of UTF-8 text of `text_len` bytes; none for none.
 *
 * `tokens` has room for `capacity` of them, and `*len` becomes their number: with `capacity` 0
 * nothing else happens (`tokens` may be NULL), so a first call can ask how much room a second one
 * needs. With characters as tokens there is one for each. The token that begins a text, where a model has
 * one, is not among them. With too little room the call fails with TEENY_BUFFER_TOO_SMALL, `*len` says how
 * many there are, and `tokens` is as before.
 *
 * Fails with TEENY_TOKENIZER for a character that the model does not know.
 */
teeny_status teeny_model_encode(const struct teeny_model *model,
                                const char *text,
                                size_t text_len,
                                uint32_t *tokens,
                                size_t capacity,
                                size_t *len);

/**
 * The bytes of `n_tokens` tokens, one after the other. The bytes of one token need not be whole
 * characters.
 *
 * `text` has room for `capacity` bytes, and `*len` becomes their number, as in
 * `teeny_model_encode`. No zero byte is added.
 *
 * Fails with TEENY_TOKENIZER for a token that the vocabulary lacks.
 */
teeny_status teeny_model_decode(const struct teeny_model *model,
                                const uint32_t *tokens,
                                size_t n_tokens,
                                char *text,
                                size_t capacity,
                                size_t *len);

/**
 * The bytes that a token stands for, which need not be whole characters. They are the model's: they
 * live as long as it or a session of it.
 *
 * Fails with TEENY_INVALID_ARGUMENT for a token that the vocabulary lacks.
 */
teeny_status teeny_model_token_bytes(const struct teeny_model *model,
                                     uint32_t token,
                                     struct teeny_text *bytes);

/**
 * Fills options with the defaults. `size` is `sizeof(teeny_sampler_options)`.
 *
 * Fails with TEENY_INVALID_ARGUMENT for a size that no version of the options has.
 */
teeny_status teeny_sampler_options_init(struct teeny_sampler_options *options, size_t size);

/**
 * Makes a sampler with the usual chain. `options` may be NULL for the defaults.
 *
 * `*out` is set on success; `teeny_sampler_free` frees it. Fails with TEENY_INVALID_ARGUMENT for a
 * number out of its range.
 */
teeny_status teeny_sampler_new(const struct teeny_sampler_options *options,
                               struct teeny_sampler **out);

/**
 * Makes a sampler without any stage yet: it draws each token with the probability that the model
 * gives it. `*out` is set on success; `teeny_sampler_free` frees it.
 */
teeny_status teeny_sampler_new_chain(uint64_t seed, struct teeny_sampler **out);

/**
 * Makes a sampler that always takes the most likely token, of equal ones the first. `*out` is set
 * on success; `teeny_sampler_free` frees it.
 */
teeny_status teeny_sampler_new_greedy(struct teeny_sampler **out);

/**
 * Adds a stage that adds to the logits of `n` tokens. They are copied; several biases of one token
 * add up.
 *
 * Fails with TEENY_INVALID_ARGUMENT for a bias that is NaN or +INFINITY. A token that the logits
 * lack makes sampling fail, because only then their number is known.
 */
teeny_status teeny_sampler_add_logit_bias(struct teeny_sampler *sampler,
                                          const struct teeny_logit_bias *biases,
                                          size_t n);

/**
 * Adds a stage that makes the `last_n` newest tokens, at most 1048576, less likely: those accepted
 * or drawn after it was added. `repeat` divides their logits
 * where they are positive and multiplies them where they are negative, 1 is off; `frequency` is
 * subtracted for each time a token is among them, `presence` once, 0 is off.
 *
 * Fails with TEENY_INVALID_ARGUMENT for a number out of its range.
 */
teeny_status teeny_sampler_add_penalties(struct teeny_sampler *sampler,
                                         size_t last_n,
                                         float repeat,
                                         float frequency,
                                         float presence);

/**
 * Adds a stage that keeps the `k` most likely tokens; 0 keeps all.
 */
teeny_status teeny_sampler_add_top_k(struct teeny_sampler *sampler, size_t k);

/**
 * Adds a stage that keeps the most likely tokens that together reach probability `p`, at least one.
 *
 * Fails with TEENY_INVALID_ARGUMENT unless 0 < p <= 1.
 */
teeny_status teeny_sampler_add_top_p(struct teeny_sampler *sampler, float p);

/**
 * Adds a stage that keeps the tokens of at least the share `p` of the most likely one's
 * probability.
 *
 * Fails with TEENY_INVALID_ARGUMENT unless 0 <= p <= 1.
 */
teeny_status teeny_sampler_add_min_p(struct teeny_sampler *sampler, float p);

/**
 * Adds a stage that divides the logits; 0 keeps only the most likely token.
 *
 * Fails with TEENY_INVALID_ARGUMENT unless 0 <= temperature <= 100.
 */
teeny_status teeny_sampler_add_temperature(struct teeny_sampler *sampler, float temperature);

/**
 * The chain in words, such as "seed 0: top_k 40, top_p 0.95, min_p 0.05, temperature 0.8". `text`
 * has room for `capacity` bytes, and `*len` becomes their number, as in `teeny_model_encode`. No
 * zero byte is added.
 */
teeny_status teeny_sampler_describe(const struct teeny_sampler *sampler,
                                    char *text,
                                    size_t capacity,
                                    size_t *len);

/**
 * Makes a second sampler with the same chain in the same state: both draw the same tokens from the
 * same logits. `*out` is set on success; `teeny_sampler_free` frees it.
 */
teeny_status teeny_sampler_clone(const struct teeny_sampler *sampler, struct teeny_sampler **out);

/**
 * Draws a token from `n_logits` logits of any origin, and takes it in as `teeny_sampler_accept`
 * does. NaN counts as impossible, +INFINITY as the largest number.
 *
 * Fails with TEENY_INVALID_ARGUMENT if no token is possible.
 */
teeny_status teeny_sampler_sample(struct teeny_sampler *sampler,
                                  const float *logits,
                                  size_t n_logits,
                                  uint32_t *token);

/**
 * Tells a sampler of a token that it did not draw, such as one of the prompt, for the penalties.
 */
teeny_status teeny_sampler_accept(struct teeny_sampler *sampler, uint32_t token);

/**
 * Forgets all tokens and begins the random numbers anew, as if nothing had been drawn.
 */
teeny_status teeny_sampler_reset(struct teeny_sampler *sampler);

/**
 * Frees a sampler. NULL is fine. A stream that uses it keeps it alive.
 */
void teeny_sampler_free(struct teeny_sampler *sampler);

/**
 * Fills options with the defaults. `size` is `sizeof(teeny_session_options)`.
 *
 * Fails with TEENY_INVALID_ARGUMENT for a size that no version of the options has.
 */
teeny_status teeny_session_options_init(struct teeny_session_options *options, size_t size);

/**
 * Starts an empty sequence. `options` may be NULL for the defaults.
 *
 * `*out` is set on success; `teeny_session_free` frees it, before or after the model.
 */
teeny_status teeny_session_new(const struct teeny_model *model,
                               const struct teeny_session_options *options,
                               struct teeny_session **out);

/**
 * Frees a session. NULL is fine. A stream of it, or a call that it is in, keeps it alive.
 */
void teeny_session_free(struct teeny_session *session);

/**
 * Feeds `n` tokens: afterwards the logits are those for the token that follows them.
 *
 * Fails with TEENY_INVALID_ARGUMENT for no token or one outside the vocabulary and with
 * TEENY_CONTEXT_FULL as the session's overflow says, and has fed nothing then; with TEENY_CANCELLED
 * or TEENY_OUT_OF_MEMORY it has fed the first tokens, `teeny_session_position` says how many, and
 * all is as if just those had been asked for. Cancelling is noticed every 64 tokens, on a GPU every
 * 1,024.
 */
teeny_status teeny_session_feed(struct teeny_session *session, const uint32_t *tokens, size_t n);

/**
 * Feeds one token: the step of a decoding loop. It gives the same logits as feeding it together with
 * those before it: bit for bit on the CPU, to rounding on a GPU.
 *
 * Fails as `teeny_session_feed`, and has fed nothing then.
 */
teeny_status teeny_session_decode(struct teeny_session *session,
                                  uint32_t token);

/**
 * The logits for the token that follows what was fed: `*len`, the size of the vocabulary, numbers.
 * They are the session's: the next call that feeds or goes back changes them, and they go with it.
 *
 * Fails with TEENY_INVALID_ARGUMENT before any token was fed.
 */
teeny_status teeny_session_logits(const struct teeny_session *session,
                                  const float **logits,
                                  size_t *len);

/**
 * The last token's hidden state after the final norm, from which the logits are made: an embedding
 * of the text so far, `*len` = `teeny_model_n_embd` numbers. They are the session's, as the logits
 * are.
 *
 * Fails with TEENY_INVALID_ARGUMENT before any token was fed.
 */
teeny_status teeny_session_hidden(const struct teeny_session *session,
                                  const float **hidden,
                                  size_t *len);

/**
 * Draws the next token from the session's logits with a sampler. It is not fed:
 * `teeny_session_decode` does that.
 *
 * Fails with TEENY_INVALID_ARGUMENT before any token was fed.
 */
teeny_status teeny_session_sample(struct teeny_session *session,
                                  struct teeny_sampler *sampler,
                                  uint32_t *token);

/**
 * Number of tokens fed since the start, those that have left the context included. 0 for what is no
 * session or is in use.
 */
size_t teeny_session_position(const struct teeny_session *session);

/**
 * Goes back to the first `position` tokens: all is as if no more had been fed, the logits included, on
 * the CPU bit for bit. Takes the time of one token; 0 is `teeny_session_reset`.
 *
 * Fails with TEENY_INVALID_ARGUMENT for more tokens than there are, or so few that what they need
 * has left the context; nothing has changed then.
 */
teeny_status teeny_session_truncate(struct teeny_session *session,
                                    size_t position);

/**
 * Makes a second session at the same point, from which both go on by themselves. Keys and values
 * are shared until one of them writes there, 64 tokens at a time: many characters that begin with
 * the same prompt hold it once, and nobody computes it again.
 *
 * `*out` is set on success; `teeny_session_free` frees it, in any order.
 */
teeny_status teeny_session_fork(const struct teeny_session *session, struct teeny_session **out);

/**
 * Forgets all tokens and a wish to cancel, and keeps the memory. A session that a fault has
 * interrupted works again.
 */
teeny_status teeny_session_reset(struct teeny_session *session);

/**
 * Asks, from any thread, that the call which is feeding, scoring or generating in the session end
 * with TEENY_CANCELLED, or the next such call if there is none. The wish lasts until one call has
 * noticed it; `on` is 1 to ask and 0 to take it back. What the session then holds is said with each
 * function.
 */
teeny_status teeny_session_cancel(const struct teeny_session *session, int32_t on);

/**
 * What the session has done, how long it took, and what memory it holds. `size` is
 * `sizeof(teeny_session_stats)`. A fork or restored session counts from its own beginning.
 */
teeny_status teeny_session_get_stats(const struct teeny_session *session,
                                     struct teeny_session_stats *stats,
                                     size_t size);

/**
 * Saves the session's tokens, keys and values, so that a long prompt need be computed only once.
 *
 * `data` has room for `capacity` bytes, and `*len` becomes their number, as in
 * `teeny_model_encode`: a first call with capacity 0 asks for it, and costs nothing. The first time
 * that a model's session is saved or restored the whole model is read, for its fingerprint.
 */
teeny_status teeny_session_save(const struct teeny_session *session,
                                void *data,
                                size_t capacity,
                                size_t *len);

/**
 * Saves the session as `teeny_session_save` does, to a file: a temporary one beside it that is
 * renamed when it is whole. `path` is UTF-8 that ends in a zero byte.
 *
 * Fails with TEENY_IO for a file that cannot be written; what was there before is unchanged then.
 */
teeny_status teeny_session_save_file(const struct teeny_session *session, const char *path);

/**
 * Becomes the session that was saved: it goes on bit for bit as that one would have, with its own
 * overflow; on another device than the one that saved it, to rounding. The bytes may come from anyone.
 *
 * Fails with TEENY_FORMAT for bytes that are damaged or no saved session, TEENY_MISMATCH for one of
 * another model (or of another `dtype` or `max_seq_len` of it), TEENY_CONTEXT_FULL for one with more
 * tokens than this session's overflow allows. Nothing has changed then.
 */
teeny_status teeny_session_restore(struct teeny_session *session,
                                   const void *data,
                                   size_t len);

/**
 * Restores what `teeny_session_save_file` wrote. `path` is UTF-8 that ends in a zero byte.
 *
 * Fails as `teeny_session_restore`, and with TEENY_IO for a file that cannot be read.
 */
teeny_status teeny_session_restore_file(struct teeny_session *session, const char *path);

/**
 * Fills options with the defaults. `size` is `sizeof(teeny_generate_options)`.
 *
 * Fails with TEENY_INVALID_ARGUMENT for a size that no version of the options has.
 */
teeny_status teeny_generate_options_init(struct teeny_generate_options *options, size_t size);

/**
 * Continues a prompt and hands each piece of the new text to `callback`, on this thread: all in
 * one, with a sequence of its own that goes on without end past the model's context.
 *
 * `prompt` is UTF-8 of `prompt_len` bytes, at least one character, each in the model's vocabulary.
 * `sampler_options` and `options` may be NULL for the defaults. `callback` may call teeny;
 * `user_data` is passed through to it.
 *
 * Fails with TEENY_TOKENIZER for a character that the model does not know, TEENY_CANCELLED when
 * the callback asked to stop. What was handed out before a failure is good text.
 */
teeny_status teeny_generate(const struct teeny_model *model,
                            const char *prompt,
                            size_t prompt_len,
                            const struct teeny_sampler_options *sampler_options,
                            const struct teeny_generate_options *options,
                            teeny_text_callback callback,
                            void *user_data);

/**
 * Continues a session: feeds a prompt, generates, and hands each piece of the new text to
 * `callback`, on this thread. Afterwards the session holds the prompt and every token that was
 * drawn, those of a stop text included (but for the last one, if the context had no room for it):
 * the next call goes on from there.
 *
 * `prompt` is UTF-8 of `prompt_len` bytes, each character in the model's vocabulary; none (it may
 * be NULL then) goes on after what the session holds. `sampler` NULL stands for a new one with the
 * defaults, `options` NULL for the defaults. `callback` may call teeny, but neither with this
 * session nor with this sampler.
 *
 * Fails with TEENY_TOKENIZER for a character that the model does not know, TEENY_CANCELLED when
 * the callback or `teeny_session_cancel` asked to stop, TEENY_CONTEXT_FULL as the session's
 * overflow says. What was handed out before a failure is good text and is held by the session; of a
 * prompt that was cancelled, as with `teeny_session_feed`, the first part.
 */
teeny_status teeny_session_generate(struct teeny_session *session,
                                    struct teeny_sampler *sampler,
                                    const char *prompt,
                                    size_t prompt_len,
                                    const struct teeny_generate_options *options,
                                    teeny_text_callback callback,
                                    void *user_data);

/**
 * Prepares to continue a session as `teeny_session_generate` does, with the same arguments. Nothing
 * is fed before the first `teeny_stream_next`.
 *
 * The stream keeps session and sampler alive. Both may be used between its pieces; what is fed
 * then becomes part of the text that it continues.
 *
 * `*out` is set on success; `teeny_stream_free` frees it. Fails with TEENY_TOKENIZER for a character
 * that the model does not know.
 */
teeny_status teeny_stream_new(struct teeny_session *session,
                              struct teeny_sampler *sampler,
                              const char *prompt,
                              size_t prompt_len,
                              const struct teeny_generate_options *options,
                              struct teeny_stream **out);

/**
 * Generates until there is a piece of text, most often one token, and the first time the prompt.
 * The text is the stream's: it lives until the next call for this stream. At the end `piece->len`
 * is 0, then and ever after.
 *
 * The session holds every token whose text was handed out. Fails as `teeny_session_generate`; the
 * stream has ended then.
 */
teeny_status teeny_stream_next(struct teeny_stream *stream, struct teeny_text *piece);

/**
 * Why the stream has ended, a teeny_end_reason; TEENY_END_NONE while it goes on.
 */
teeny_status teeny_stream_end_reason(const struct teeny_stream *stream, int32_t *reason);

/**
 * Frees a stream, ended or not. NULL is fine.
 */
void teeny_stream_free(struct teeny_stream *stream);

/**
 * Feeds `n` tokens as `teeny_session_feed` does, and says how likely each of them was given all
 * before it: `log_probs[i]` becomes the natural logarithm of the probability of `tokens[i]`. For the
 * first token of an empty session, which nothing precedes, it is NaN.
 *
 * `top_tokens` and `top_log_probs` receive the `top_n` likeliest tokens in the place of each, most
 * likely first: n rows of `top_n`. Where there are none, because the vocabulary is smaller or nothing
 * precedes, the token is UINT32_MAX and its logarithm NaN. With `top_n` 0 both may be NULL.
 *
 * Fails as `teeny_session_feed`; the buffers may be written in part then.
 */
teeny_status teeny_session_score(struct teeny_session *session,
                                 const uint32_t *tokens,
                                 size_t n,
                                 float *log_probs,
                                 size_t top_n,
                                 uint32_t *top_tokens,
                                 float *top_log_probs);

/**
 * How likely the model finds UTF-8 text of `text_len` bytes, at least two tokens: all in one. Past
 * the context each token is judged by those that the context still holds. The token that begins a text
 * comes first, where the model has one. `size` is `sizeof(teeny_score)`.
 *
 * Fails with TEENY_TOKENIZER for a character that the model does not know.
 */
teeny_status teeny_score_text(const struct teeny_model *model,
                              const char *text,
                              size_t text_len,
                              struct teeny_score *score,
                              size_t size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TEENY_H */
