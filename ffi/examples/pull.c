/* Asks for text piece by piece instead of being called with it, and mixes a sampler of its own:
 *
 *     pull MODEL PROMPT
 *
 * It ends with the paragraph. README.md says how to build it.
 */
#include <stdio.h>
#include <string.h>

#include "teeny.h"

/* A chain of stages: each changes the logits or drops tokens, in the order of adding them. */
static teeny_status make_sampler(uint64_t seed, teeny_sampler **sampler) {
    teeny_status status = teeny_sampler_new_chain(seed, sampler);

    if (status == TEENY_OK) {
        status = teeny_sampler_add_penalties(*sampler, 64, 1.1f, 0, 0);
    }
    if (status == TEENY_OK) {
        status = teeny_sampler_add_top_k(*sampler, 20);
    }
    if (status == TEENY_OK) {
        status = teeny_sampler_add_top_p(*sampler, 0.9f);
    }
    if (status == TEENY_OK) {
        status = teeny_sampler_add_temperature(*sampler, 0.7f);
    }
    return status;
}

/* Prints the stream's text to its end. Between two pieces a program may do what it likes, and it
 * may stop asking at any time. */
static teeny_status print_all(teeny_stream *stream) {
    teeny_text piece;
    teeny_status status = teeny_stream_next(stream, &piece);

    while (status == TEENY_OK && piece.len > 0) {
        if (fwrite(piece.data, 1, piece.len, stdout) != piece.len || fflush(stdout) != 0) {
            return TEENY_CANCELLED; /* nobody reads it any more */
        }
        status = teeny_stream_next(stream, &piece);
    }
    return status;
}

int main(int argc, char **argv) {
    teeny_model *model = NULL;
    teeny_session *session = NULL;
    teeny_sampler *sampler = NULL;
    teeny_stream *stream = NULL;
    teeny_generate_options options;
    teeny_text stop = {"\n\n", 2};
    teeny_status status;
    int32_t reason = TEENY_END_NONE;

    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL PROMPT\n", argv[0]);
        return 2;
    }
    status = teeny_model_load(argv[1], NULL, &model);
    if (status == TEENY_OK) {
        status = teeny_session_new(model, NULL, &session);
    }
    if (status == TEENY_OK) {
        status = make_sampler(1, &sampler);
    }
    if (status == TEENY_OK) {
        status = teeny_generate_options_init(&options, sizeof options);
    }
    if (status == TEENY_OK) {
        options.max_tokens = 1000;
        options.stop = &stop;
        options.n_stop = 1;
        status = teeny_stream_new(session, sampler, argv[2], strlen(argv[2]), &options, &stream);
    }
    if (status == TEENY_OK) {
        status = print_all(stream);
    }
    if (status == TEENY_OK) {
        printf("\n");
        status = teeny_stream_end_reason(stream, &reason);
    }
    if (status == TEENY_OK) {
        fprintf(stderr, "%s after %zu tokens\n",
                reason == TEENY_END_STOP_TEXT ? "end of the paragraph" : "cut off",
                teeny_session_position(session));
    } else {
        fprintf(stderr, "%s: %s: %s\n", argv[0], teeny_status_name(status), teeny_last_error());
    }
    teeny_stream_free(stream);
    teeny_sampler_free(sampler);
    teeny_session_free(session);
    teeny_model_free(model);
    return status == TEENY_OK ? 0 : 1;
}
