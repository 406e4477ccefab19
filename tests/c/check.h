/* What the C tests share. One program is main.c with all groups, of which it runs those that its
 * arguments name; allocation.c and panic.c are programs of their own, and layout.c only has to
 * compile. Models lie in a folder that abi.rs fills:
 *
 *   model      rope, 200 characters from 'A' on, n_embd 30, context 24, F32
 *   bf16       the same weights, each rounded to bf16
 *   other      the same shape with other weights
 *   learned    the same shape with learned positions, which restart where rope slides
 *   deep       many layers and a context of 65536: much memory for keys and values
 *   big        a wide layer: much memory for weights
 *   foreign    no model; cut: the first half of model; empty: no byte
 */
#ifndef CHECK_H
#define CHECK_H

/* setrlimit, nanosleep and threads, which C99 leaves out. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "teeny.h"

enum { VOCAB = 200, CONTEXT = 24, N_EMBD = 30 };

/* Smaller numbers of everything, for valgrind and sanitizers. */
extern int quick;

/* Where the models lie. */
void set_folder(const char *path);

/* A name of its place for the failed check, with what the library says. */
#define CHECK(condition) check((condition) != 0, #condition, __FILE__, __LINE__)
/* The call gave this status, and a message with this part, or none for success. */
#define EXPECT(call, status, part) expect(call, status, part, #call, __FILE__, __LINE__)
/* The call failed with this status and some message. */
#define FAILS(call, status) expect(call, status, NULL, #call, __FILE__, __LINE__)
#define OK(call) expect(call, TEENY_OK, "", #call, __FILE__, __LINE__)
/* As OK, and without it nothing further can be checked. */
#define MUST(call) must(call, #call, __FILE__, __LINE__)

/* These return whether it was so. */
int check(int condition, const char *text, const char *file, int line);
int expect(teeny_status found, teeny_status status, const char *part, const char *call,
           const char *file, int line);
void must(teeny_status found, const char *call, const char *file, int line);
int failure_count(void);

/* The path of one of the models; valid until four further calls on this thread's turn. */
const char *path_of(const char *name);
teeny_model *load(const char *name);
teeny_session *new_session(const teeny_model *model);
teeny_session *new_session_with(const teeny_model *model, int32_t overflow);
/* A session that has been fed these tokens at once. */
teeny_session *fed(const teeny_model *model, const uint32_t *tokens, size_t n);

/* A file's bytes in memory from malloc. */
unsigned char *read_file(const char *path, size_t *len);

/* 32 random bits, the same for the same seed (SplitMix64). */
uint32_t random_bits(uint64_t *state);
void random_tokens(uint32_t *tokens, size_t n, uint64_t seed);

/* Bit for bit, so that a NaN equals itself and -0 is not 0. */
int same_floats(const float *a, const float *b, size_t n);
/* What a session would say next, for comparing. */
typedef struct state {
    size_t position;
    float logits[VOCAB];
    float hidden[N_EMBD];
} state;
state state_of(const teeny_session *session);
int same_state(const state *a, const state *b);
/* Position, logits and hidden state are those of a new session fed with the same tokens. */
#define IS_FED(session, model, tokens, n) is_fed(session, model, tokens, n, __FILE__, __LINE__)
int is_fed(const teeny_session *session, const teeny_model *model, const uint32_t *tokens, size_t n,
           const char *file, int line);

/* What a text callback has received. */
typedef struct received {
    char text[4096];
    size_t len;
    int pieces;
    int whole;      /* No piece began inside of a character or was empty. */
    int stop_after; /* Pieces after which to stop; 0 for never. */
} received;
int32_t receive(void *user_data, const char *text, size_t len);
received nothing(void);
int same_text(const received *a, const received *b);

teeny_model_options model_options(void);
teeny_session_options session_options(void);
teeny_sampler_options sampler_options(void);
teeny_generate_options generate_options(void);

/* Address of no object, by its bits. */
void *made_up(uintptr_t bits);

/* Runs `call` with n times the same argument on as many threads. */
void on_threads(void *(*call)(void *), void *arguments, size_t size, int n);

/* The groups. */
void library_group(void);
void model_group(void);
void memory_group(void);
void text_group(void);
void sampler_group(void);
void session_group(void);
void cancel_group(void);
void state_group(void);
void generate_group(void);
void score_group(void);
void handles_group(void);
void reentry_group(void);
void stress_group(void);
void random_calls_group(void);
void memory_limit_group(void);

#endif
