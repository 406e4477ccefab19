/* Talks with a model that knows plays:
 *
 *     chat MODEL [SEED]
 *
 * Each line of the input is spoken by one character of the play, and the model answers as another.
 * One session lasts the whole conversation, so no word of it is computed twice; when the model's
 * context is full, the session forgets the oldest words and goes on. README.md says how to build
 * it.
 */
#define _POSIX_C_SOURCE 200809L /* getline */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "teeny.h"

/* The model has learned from plays written like this: a name, a speech, an empty line. */
static const char YOU[] = "FIRST LORD:\n";
static const char ANSWER[] = "ROMEO:\n";
static const char END_OF_SPEECH[] = "\n\n";

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

/* Has the model answer one line. `open` is 1 if its last speech was cut off before its end. */
static teeny_status answer(teeny_session *session, teeny_sampler *sampler, const char *line,
                           int *open) {
    size_t size = sizeof END_OF_SPEECH + sizeof YOU + strlen(line) + sizeof END_OF_SPEECH +
                  sizeof ANSWER;
    char *prompt = malloc(size);
    teeny_text stop = {END_OF_SPEECH, sizeof END_OF_SPEECH - 1};
    teeny_generate_options options;
    teeny_session_stats stats;
    teeny_status status;

    if (prompt == NULL) {
        return TEENY_OUT_OF_MEMORY;
    }
    /* Only what is new is fed: the session remembers the rest. */
    snprintf(prompt, size, "%s%s%s%s%s", *open ? END_OF_SPEECH : "", YOU, line, END_OF_SPEECH,
             ANSWER);
    status = teeny_generate_options_init(&options, sizeof options);
    if (status == TEENY_OK) {
        options.max_tokens = 400;
        options.stop = &stop;
        options.n_stop = 1;
        status = teeny_session_generate(session, sampler, prompt, strlen(prompt), &options, print,
                                        stdout);
    }
    free(prompt);
    if (status == TEENY_OK) {
        status = teeny_session_get_stats(session, &stats, sizeof stats);
    }
    if (status == TEENY_OK) {
        *open = stats.end_reason != TEENY_END_STOP_TEXT;
    }
    return status;
}

/* Answers every line of the input. */
static teeny_status chat(teeny_session *session, teeny_sampler *sampler) {
    char *line = NULL;
    size_t capacity = 0;
    int open = 0;
    teeny_status status = TEENY_OK;

    fprintf(stderr, "> ");
    while (status == TEENY_OK && getline(&line, &capacity, stdin) >= 0) {
        line[strcspn(line, "\r\n")] = 0;
        if (*line != 0) {
            status = answer(session, sampler, line, &open);
            if (status == TEENY_TOKENIZER || status == TEENY_INVALID_ARGUMENT) {
                /* Nothing has become of that line: the conversation goes on from where it was. */
                fprintf(stderr, "Please say that in other letters: %s\n", teeny_last_error());
                status = TEENY_OK;
            } else if (status == TEENY_OK) {
                status = print(stdout, END_OF_SPEECH, 2) == 0 ? TEENY_OK : TEENY_CANCELLED;
            }
        }
        if (status == TEENY_OK) {
            fprintf(stderr, "> ");
        }
    }
    free(line);
    return status;
}

int main(int argc, char **argv) {
    teeny_model *model = NULL;
    teeny_session *session = NULL;
    teeny_sampler *sampler = NULL;
    teeny_sampler_options sampling;
    teeny_session_stats stats;
    teeny_status status;
    unsigned long seed = 0;

    if (argc < 2 || argc > 3 || (argc == 3 && !read_number(argv[2], &seed))) {
        fprintf(stderr, "usage: %s MODEL [SEED]\n", argv[0]);
        return 2;
    }
    status = teeny_sampler_options_init(&sampling, sizeof sampling);
    if (status == TEENY_OK) {
        sampling.seed = seed;
        status = teeny_model_load(argv[1], NULL, &model);
    }
    if (status == TEENY_OK) {
        status = teeny_session_new(model, NULL, &session);
    }
    if (status == TEENY_OK) {
        status = teeny_sampler_new(&sampling, &sampler);
    }
    if (status == TEENY_OK) {
        status = chat(session, sampler);
    }
    if (status == TEENY_OK) {
        status = teeny_session_get_stats(session, &stats, sizeof stats);
    }
    if (status == TEENY_OK) {
        double seconds = (double)stats.decode_ns / 1e9;
        fprintf(stderr, "\n%zu tokens, %.0f tok/s\n", teeny_session_position(session),
                seconds > 0 ? (double)stats.decode_tokens / seconds : 0);
    } else {
        fprintf(stderr, "%s: %s: %s\n", argv[0], teeny_status_name(status), teeny_last_error());
    }
    teeny_sampler_free(sampler);
    teeny_session_free(session);
    teeny_model_free(model);
    return status == TEENY_OK ? 0 : 1;
}
