/* The ABI, nailed down: every number, every layout, every function's type. Only has to compile, on
 * a machine of 64 bits, as the library's own assertions.
 *
 * What stands here never changes while TEENY_ABI_VERSION is 1: new things are added, at the end of
 * their enum or struct, and get lines of their own.
 */
#include <stddef.h>
#include <stdint.h>

#include "teeny.h"

/* C99 has no static assertions, but no arrays of negative length either. */
#define JOIN(a, b) a##b
#define NAME(line) JOIN(assertion_, line)
#define ASSERT(condition) typedef char NAME(__LINE__)[(condition) ? 1 : -1]
#define AT(type, member, offset) ASSERT(offsetof(type, member) == (offset))

#if UINTPTR_MAX == UINT64_MAX

ASSERT(TEENY_ABI_VERSION == 1);
ASSERT(sizeof(teeny_status) == 4 && (teeny_status)-1 < 0);

ASSERT(TEENY_OK == 0);
ASSERT(TEENY_INVALID_ARGUMENT == 1);
ASSERT(TEENY_NULL_POINTER == 2);
ASSERT(TEENY_IO == 3);
ASSERT(TEENY_FORMAT == 4);
ASSERT(TEENY_TOKENIZER == 5);
ASSERT(TEENY_CONTEXT_FULL == 6);
ASSERT(TEENY_OUT_OF_MEMORY == 7);
ASSERT(TEENY_CANCELLED == 8);
ASSERT(TEENY_PANIC == 9);
ASSERT(TEENY_OTHER == 10);
ASSERT(TEENY_INVALID_HANDLE == 11);
ASSERT(TEENY_BUSY == 12);
ASSERT(TEENY_BUFFER_TOO_SMALL == 13);
ASSERT(TEENY_NOT_FOUND == 14);
ASSERT(TEENY_UNSUPPORTED == 15);
ASSERT(TEENY_MISMATCH == 16);
ASSERT(TEENY_DEVICE == 17);

ASSERT(TEENY_OVERFLOW_SLIDE == 0);
ASSERT(TEENY_OVERFLOW_STOP == 1);
ASSERT(TEENY_OVERFLOW_ERROR == 2);

ASSERT(TEENY_DTYPE_AS_STORED == 0);
ASSERT(TEENY_DTYPE_F32 == 1);
ASSERT(TEENY_DTYPE_F16 == 2);
ASSERT(TEENY_DTYPE_BF16 == 3);
ASSERT(TEENY_DTYPE_Q8 == 4);
ASSERT(TEENY_DTYPE_Q4 == 5);

ASSERT(TEENY_KV_F32 == 0);
ASSERT(TEENY_KV_F16 == 1);
ASSERT(TEENY_KV_Q8 == 2);

ASSERT(TEENY_LOG_ERROR == 1);
ASSERT(TEENY_LOG_WARN == 2);
ASSERT(TEENY_LOG_INFO == 3);
ASSERT(TEENY_LOG_DEBUG == 4);

ASSERT(TEENY_END_NONE == 0);
ASSERT(TEENY_END_LENGTH == 1);
ASSERT(TEENY_END_STOP_TEXT == 2);
ASSERT(TEENY_END_CONTEXT_FULL == 3);
ASSERT(TEENY_END_CANCELLED == 4);
ASSERT(TEENY_END_FAILED == 5);

ASSERT(sizeof(teeny_text) == 16);
AT(teeny_text, data, 0);
AT(teeny_text, len, 8);

ASSERT(sizeof(teeny_logit_bias) == 8);
AT(teeny_logit_bias, token, 0);
AT(teeny_logit_bias, bias, 4);

ASSERT(sizeof(teeny_model_options) == 64);
AT(teeny_model_options, size, 0);
AT(teeny_model_options, device, 8);
AT(teeny_model_options, progress, 16);
AT(teeny_model_options, progress_user_data, 24);
AT(teeny_model_options, max_seq_len, 32);
AT(teeny_model_options, threads, 40);
AT(teeny_model_options, dtype, 44);
AT(teeny_model_options, map, 48);
AT(teeny_model_options, kv_dtype, 52);
AT(teeny_model_options, fast, 56);
AT(teeny_model_options, reserved, 60);

ASSERT(sizeof(teeny_sampler_options) == 56);
AT(teeny_sampler_options, size, 0);
AT(teeny_sampler_options, seed, 8);
AT(teeny_sampler_options, top_k, 16);
AT(teeny_sampler_options, penalty_last_n, 24);
AT(teeny_sampler_options, temperature, 32);
AT(teeny_sampler_options, top_p, 36);
AT(teeny_sampler_options, min_p, 40);
AT(teeny_sampler_options, repeat_penalty, 44);
AT(teeny_sampler_options, frequency_penalty, 48);
AT(teeny_sampler_options, presence_penalty, 52);

ASSERT(sizeof(teeny_session_options) == 24);
AT(teeny_session_options, size, 0);
AT(teeny_session_options, reserve, 8);
AT(teeny_session_options, overflow, 16);
AT(teeny_session_options, reserved, 20);

ASSERT(sizeof(teeny_session_stats) == 72);
AT(teeny_session_stats, size, 0);
AT(teeny_session_stats, prefill_tokens, 8);
AT(teeny_session_stats, prefill_ns, 16);
AT(teeny_session_stats, decode_tokens, 24);
AT(teeny_session_stats, decode_ns, 32);
AT(teeny_session_stats, first_token_ns, 40);
AT(teeny_session_stats, kv_bytes, 48);
AT(teeny_session_stats, kv_shared_bytes, 56);
AT(teeny_session_stats, end_reason, 64);
AT(teeny_session_stats, reserved, 68);

ASSERT(sizeof(teeny_generate_options) == 40);
AT(teeny_generate_options, size, 0);
AT(teeny_generate_options, max_tokens, 8);
AT(teeny_generate_options, stop, 16);
AT(teeny_generate_options, n_stop, 24);
AT(teeny_generate_options, raw_bytes, 32);
AT(teeny_generate_options, ignore_end, 36);

ASSERT(sizeof(teeny_score) == 40);
AT(teeny_score, size, 0);
AT(teeny_score, n_tokens, 8);
AT(teeny_score, n_scored, 16);
AT(teeny_score, log_prob, 24);
AT(teeny_score, perplexity, 32);

#endif

/* Declared again: a compiler refuses that if a function's type is not what it was. */
uint32_t teeny_abi_version(void);
const char *teeny_version(void);
const char *teeny_build_info(void);
const char *teeny_last_error(void);
const char *teeny_status_name(teeny_status);
teeny_status teeny_set_log_callback(int32_t, teeny_log_callback, void *);
size_t teeny_object_count(void);
teeny_status teeny_model_options_init(teeny_model_options *, size_t);
teeny_status teeny_model_load(const char *, const teeny_model_options *, teeny_model **);
teeny_status teeny_model_load_memory(const void *, size_t, teeny_release_callback, void *,
                                     const teeny_model_options *, teeny_model **);
void teeny_model_free(teeny_model *);
size_t teeny_model_vocab_size(const teeny_model *);
size_t teeny_model_max_seq_len(const teeny_model *);
size_t teeny_model_n_embd(const teeny_model *);
size_t teeny_model_n_params(const teeny_model *);
size_t teeny_model_memory_used(const teeny_model *);
size_t teeny_model_metadata_count(const teeny_model *);
teeny_status teeny_model_metadata_at(const teeny_model *, size_t, teeny_text *, teeny_text *);
teeny_status teeny_model_metadata_get(const teeny_model *, const char *, size_t, teeny_text *);
teeny_status teeny_model_encode(const teeny_model *, const char *, size_t, uint32_t *, size_t,
                                size_t *);
teeny_status teeny_model_decode(const teeny_model *, const uint32_t *, size_t, char *, size_t,
                                size_t *);
teeny_status teeny_model_token_bytes(const teeny_model *, uint32_t, teeny_text *);
teeny_status teeny_sampler_options_init(teeny_sampler_options *, size_t);
teeny_status teeny_sampler_new(const teeny_sampler_options *, teeny_sampler **);
teeny_status teeny_sampler_new_chain(uint64_t, teeny_sampler **);
teeny_status teeny_sampler_new_greedy(teeny_sampler **);
teeny_status teeny_sampler_add_logit_bias(teeny_sampler *, const teeny_logit_bias *, size_t);
teeny_status teeny_sampler_add_penalties(teeny_sampler *, size_t, float, float, float);
teeny_status teeny_sampler_add_top_k(teeny_sampler *, size_t);
teeny_status teeny_sampler_add_top_p(teeny_sampler *, float);
teeny_status teeny_sampler_add_min_p(teeny_sampler *, float);
teeny_status teeny_sampler_add_temperature(teeny_sampler *, float);
teeny_status teeny_sampler_describe(const teeny_sampler *, char *, size_t, size_t *);
teeny_status teeny_sampler_clone(const teeny_sampler *, teeny_sampler **);
teeny_status teeny_sampler_sample(teeny_sampler *, const float *, size_t, uint32_t *);
teeny_status teeny_sampler_accept(teeny_sampler *, uint32_t);
teeny_status teeny_sampler_reset(teeny_sampler *);
void teeny_sampler_free(teeny_sampler *);
teeny_status teeny_session_options_init(teeny_session_options *, size_t);
teeny_status teeny_session_new(const teeny_model *, const teeny_session_options *,
                               teeny_session **);
void teeny_session_free(teeny_session *);
teeny_status teeny_session_feed(teeny_session *, const uint32_t *, size_t);
teeny_status teeny_session_decode(teeny_session *, uint32_t);
teeny_status teeny_session_logits(const teeny_session *, const float **, size_t *);
teeny_status teeny_session_hidden(const teeny_session *, const float **, size_t *);
teeny_status teeny_session_sample(teeny_session *, teeny_sampler *, uint32_t *);
size_t teeny_session_position(const teeny_session *);
teeny_status teeny_session_truncate(teeny_session *, size_t);
teeny_status teeny_session_fork(const teeny_session *, teeny_session **);
teeny_status teeny_session_reset(teeny_session *);
teeny_status teeny_session_save(const teeny_session *, void *, size_t, size_t *);
teeny_status teeny_session_save_file(const teeny_session *, const char *);
teeny_status teeny_session_restore(teeny_session *, const void *, size_t);
teeny_status teeny_session_restore_file(teeny_session *, const char *);
teeny_status teeny_session_cancel(const teeny_session *, int32_t);
teeny_status teeny_session_score(teeny_session *, const uint32_t *, size_t, float *, size_t,
                                 uint32_t *, float *);
teeny_status teeny_session_get_stats(const teeny_session *, teeny_session_stats *, size_t);
teeny_status teeny_generate_options_init(teeny_generate_options *, size_t);
teeny_status teeny_generate(const teeny_model *, const char *, size_t,
                            const teeny_sampler_options *, const teeny_generate_options *,
                            teeny_text_callback, void *);
teeny_status teeny_session_generate(teeny_session *, teeny_sampler *, const char *, size_t,
                                    const teeny_generate_options *, teeny_text_callback, void *);
teeny_status teeny_stream_new(teeny_session *, teeny_sampler *, const char *, size_t,
                              const teeny_generate_options *, teeny_stream **);
teeny_status teeny_stream_next(teeny_stream *, teeny_text *);
teeny_status teeny_stream_end_reason(const teeny_stream *, int32_t *);
void teeny_stream_free(teeny_stream *);
teeny_status teeny_score_text(const teeny_model *, const char *, size_t, teeny_score *, size_t);

/* And functions that a program gives to the library. */
extern teeny_log_callback a_log_callback;
extern void (*a_log_callback)(void *, int32_t, const char *, size_t);
extern teeny_progress_callback a_progress_callback;
extern int32_t (*a_progress_callback)(void *, float);
extern teeny_release_callback a_release_callback;
extern void (*a_release_callback)(void *, const void *, size_t);
extern teeny_text_callback a_text_callback;
extern int32_t (*a_text_callback)(void *, const char *, size_t);
