/* A game's loop that never waits for the model: text is generated on a second thread, and each
 * frame takes over what has come meanwhile.
 *
 *     background MODEL PROMPT [FRAMES]
 *
 * README.md says how to build it.
 */
#define _POSIX_C_SOURCE 200809L /* clock_nanosleep */

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "teeny.h"

enum { FRAME_NS = 1000000000 / 60, SECOND_NS = 1000000000 };

/* Reads a number that is the whole text. */
static int read_number(const char *text, unsigned long *number) {
    char *end;

    errno = 0;
    *number = strtoul(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == 0 && errno == 0;
}

/* What both threads use. The mutex guards everything below it. */
typedef struct {
    teeny_session *session;
    const char *prompt;
    pthread_mutex_t mutex;
    pthread_cond_t room; /* there is room in `text`, or `closed` was set */
    char text[1024];     /* generated and not yet taken over */
    size_t len;
    int closed;          /* nobody takes over text any more */
    int done;            /* the generating thread has nothing more to say */
    teeny_status status; /* how generating ended, with the message for it */
    char message[256];
} shared_state;

/* Called on the generating thread: leaves a piece of text for the main thread. */
static int32_t put(void *user_data, const char *text, size_t len) {
    shared_state *shared = user_data;
    int closed;

    pthread_mutex_lock(&shared->mutex);
    /* A main thread that falls behind slows the model down: nothing is lost or piles up. */
    while (!shared->closed && shared->len + len > sizeof shared->text) {
        pthread_cond_wait(&shared->room, &shared->mutex);
    }
    closed = shared->closed;
    if (!closed) {
        memcpy(shared->text + shared->len, text, len);
        shared->len += len;
    }
    pthread_mutex_unlock(&shared->mutex);
    return closed;
}

/* Called on the main thread: copies out the text that is there, and never waits for more. */
static size_t take(shared_state *shared, char *text, int *done) {
    size_t len;

    pthread_mutex_lock(&shared->mutex);
    len = shared->len;
    memcpy(text, shared->text, len);
    shared->len = 0;
    *done = shared->done;
    pthread_cond_signal(&shared->room);
    pthread_mutex_unlock(&shared->mutex);
    return len;
}

/* The generating thread: goes on until it is cancelled. */
static void *generate(void *user_data) {
    shared_state *shared = user_data;
    teeny_generate_options options;
    teeny_status status = teeny_generate_options_init(&options, sizeof options);

    if (status == TEENY_OK) {
        options.max_tokens = SIZE_MAX;
        status = teeny_session_generate(shared->session, NULL, shared->prompt,
                                        strlen(shared->prompt), &options, put, shared);
    }
    pthread_mutex_lock(&shared->mutex);
    shared->done = 1;
    shared->status = status;
    /* The message belongs to this thread: the main thread would see its own. */
    snprintf(shared->message, sizeof shared->message, "%s", teeny_last_error());
    pthread_mutex_unlock(&shared->mutex);
    return NULL;
}

/* Whether `a` is before `b`. */
static int before(const struct timespec *a, const struct timespec *b) {
    return a->tv_sec != b->tv_sec ? a->tv_sec < b->tv_sec : a->tv_nsec < b->tv_nsec;
}

/* The main loop: 60 frames a second. */
static void run(shared_state *shared, unsigned long frames) {
    char text[sizeof shared->text];
    struct timespec deadline, now;
    unsigned long frame, late = 0;
    int done = 0;

    clock_gettime(CLOCK_MONOTONIC, &deadline);
    for (frame = 0; frame < frames && !done; frame++) {
        size_t len = take(shared, text, &done);
        fwrite(text, 1, len, stdout);
        fflush(stdout);
        /* Here a game would move and draw its world. */

        deadline.tv_nsec += FRAME_NS;
        if (deadline.tv_nsec >= SECOND_NS) {
            deadline.tv_nsec -= SECOND_NS;
            deadline.tv_sec += 1;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (before(&deadline, &now)) {
            late++;
            deadline = now; /* begin anew, rather than hurry after the clock */
        }
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR) {
        }
    }
    fprintf(stderr, "%lu frames, %lu of them late\n", frame, late);
}

/* Runs the loop beside a generating thread, and stops that in the end. */
static int run_beside(shared_state *shared, unsigned long frames) {
    char rest[sizeof shared->text];
    pthread_t thread;
    size_t len;
    int done;

    if (pthread_create(&thread, NULL, generate, shared) != 0) {
        fprintf(stderr, "no thread\n");
        return 1;
    }
    run(shared, frames);

    /* It may be computing, or waiting for room: end both. */
    teeny_session_cancel(shared->session, 1);
    pthread_mutex_lock(&shared->mutex);
    shared->closed = 1;
    pthread_cond_signal(&shared->room);
    pthread_mutex_unlock(&shared->mutex);
    pthread_join(thread, NULL);

    len = take(shared, rest, &done);
    fwrite(rest, 1, len, stdout);
    printf("\n");
    if (shared->status != TEENY_CANCELLED) {
        fprintf(stderr, "%s: %s\n", teeny_status_name(shared->status), shared->message);
        return 1;
    }
    fprintf(stderr, "cancelled after %zu tokens\n", teeny_session_position(shared->session));
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "not all could be printed\n");
        return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    static shared_state shared; /* all zero */
    teeny_model *model = NULL;
    teeny_status status;
    unsigned long frames = 120;
    int failed = 1;

    if (argc < 3 || argc > 4 || (argc == 4 && !read_number(argv[3], &frames))) {
        fprintf(stderr, "usage: %s MODEL PROMPT [FRAMES]\n", argv[0]);
        return 2;
    }
    status = teeny_model_load(argv[1], NULL, &model);
    if (status == TEENY_OK) {
        status = teeny_session_new(model, NULL, &shared.session);
    }
    if (status == TEENY_OK) {
        shared.prompt = argv[2];
        pthread_mutex_init(&shared.mutex, NULL);
        pthread_cond_init(&shared.room, NULL);
        failed = run_beside(&shared, frames);
        pthread_cond_destroy(&shared.room);
        pthread_mutex_destroy(&shared.mutex);
    } else {
        fprintf(stderr, "%s: %s\n", argv[0], teeny_last_error());
    }
    teeny_session_free(shared.session);
    teeny_model_free(model);
    return failed;
}
