/* Versions, statuses, the last error, the log, the count of objects. */
#include "check.h"

static void versions(void) {
    const char *info = teeny_build_info();
    CHECK(strcmp(teeny_last_error(), "") == 0);
    CHECK(teeny_abi_version() == TEENY_ABI_VERSION);
    CHECK(strchr(teeny_version(), '.') != NULL);
    CHECK(strncmp(info, "teeny ", 6) == 0 && strstr(info, teeny_version()) != NULL);
    CHECK(strstr(info, "cpu") != NULL && strstr(info, "scalar") != NULL);
    CHECK(teeny_build_info() == info);
}

static void status_names(void) {
    static const char *const names[] = {
        "TEENY_OK",           "TEENY_INVALID_ARGUMENT", "TEENY_NULL_POINTER",
        "TEENY_IO",           "TEENY_FORMAT",           "TEENY_TOKENIZER",
        "TEENY_CONTEXT_FULL", "TEENY_OUT_OF_MEMORY",    "TEENY_CANCELLED",
        "TEENY_PANIC",        "TEENY_OTHER",            "TEENY_INVALID_HANDLE",
        "TEENY_BUSY",         "TEENY_BUFFER_TOO_SMALL", "TEENY_NOT_FOUND",
        "TEENY_UNSUPPORTED",  "TEENY_MISMATCH",         "TEENY_DEVICE",
    };
    const int n = sizeof names / sizeof names[0];
    int i;
    CHECK(n == TEENY_DEVICE + 1);
    for (i = 0; i < n; i++) {
        CHECK(strcmp(teeny_status_name((teeny_status)i), names[i]) == 0);
    }
    CHECK(strcmp(teeny_status_name((teeny_status)-1), "unknown status") == 0);
    CHECK(strcmp(teeny_status_name((teeny_status)n), "unknown status") == 0);
    CHECK(strcmp(teeny_status_name((teeny_status)INT32_MAX), "unknown status") == 0);
    CHECK(strcmp(teeny_status_name((teeny_status)INT32_MIN), "unknown status") == 0);
}

static void *other_thread(void *argument) {
    teeny_model *model = NULL;
    CHECK(strcmp(teeny_last_error(), "") == 0);
    FAILS(teeny_model_load("elsewhere.safetensors", NULL, &model), TEENY_IO);
    CHECK(strstr(teeny_last_error(), "elsewhere") != NULL);
    return argument;
}

/* The message stays until the next call that is more than a question for it or for a version. */
static void last_error(void) {
    teeny_model *model = NULL;
    char argument = 0;
    const char *message;
    char copy[512];

    FAILS(teeny_model_load("nowhere.safetensors", NULL, &model), TEENY_IO);
    message = teeny_last_error();
    snprintf(copy, sizeof copy, "%s", message);
    CHECK(strstr(message, "nowhere.safetensors") != NULL);
    CHECK(*teeny_version() && teeny_abi_version() && *teeny_build_info());
    CHECK(*teeny_status_name(TEENY_IO));
    on_threads(other_thread, &argument, 1, 1);
    CHECK(teeny_last_error() == message && strcmp(message, copy) == 0);

    teeny_model_free(NULL);
    CHECK(strcmp(teeny_last_error(), "") == 0);
    FAILS(teeny_model_load("nowhere.safetensors", NULL, &model), TEENY_IO);
    CHECK(teeny_object_count() == 0);
    CHECK(strcmp(teeny_last_error(), "") == 0);
    CHECK(teeny_model_vocab_size(NULL) == 0);
    CHECK(strstr(teeny_last_error(), "model: found NULL") != NULL);
    OK(teeny_set_log_callback(TEENY_LOG_INFO, NULL, NULL));
}

typedef struct log_of {
    int32_t level; /* The highest one expected. */
    int n;
    int n_errors;
    int sound;
} log_of;

static void take_log(void *user_data, int32_t level, const char *message, size_t len) {
    log_of *log = user_data;
    log->n++;
    log->n_errors += level == TEENY_LOG_ERROR;
    log->sound &= level >= TEENY_LOG_ERROR && level <= log->level;
    log->sound &= message != NULL && len > 0 && memchr(message, '\0', len) == NULL;
    log->sound &= len > 0 && message[len - 1] != '\n';
    /* It may call teeny, and even change the log. */
    log->sound &= teeny_abi_version() == TEENY_ABI_VERSION && teeny_model_vocab_size(NULL) == 0;
}

static void use_everything(void) {
    teeny_model *model = load("model");
    teeny_session *session = new_session(model);
    teeny_sampler *sampler = NULL;
    received got = nothing();
    OK(teeny_sampler_new(NULL, &sampler));
    OK(teeny_session_generate(session, sampler, "ABC", 3, NULL, receive, &got));
    teeny_session_free(session);
    teeny_sampler_free(sampler);
    teeny_model_free(model);
    FAILS(teeny_model_load(path_of("foreign"), NULL, &model), TEENY_FORMAT);
}

static void logging(void) {
    log_of log = {0, 0, 0, 1};
    int at_debug = 0;
    int before = 0;
    int32_t level;

    FAILS(teeny_set_log_callback(0, take_log, &log), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_set_log_callback(-1, take_log, &log), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_set_log_callback(TEENY_LOG_DEBUG + 1, take_log, &log), TEENY_INVALID_ARGUMENT);
    use_everything();
    CHECK(log.n == 0);

    for (level = TEENY_LOG_ERROR; level <= TEENY_LOG_DEBUG; level++) {
        log.level = level;
        log.n = 0;
        OK(teeny_set_log_callback(level, take_log, &log));
        use_everything();
        CHECK(log.sound);
        CHECK(log.n >= before);
        before = log.n;
        at_debug = log.n;
    }
    CHECK(at_debug > 0);
    log.n = 0;
    OK(teeny_set_log_callback(TEENY_LOG_DEBUG, NULL, &log));
    use_everything();
    CHECK(log.n == 0);
}

static void take_log_and_stop(void *user_data, int32_t level, const char *message, size_t len) {
    int *n = user_data;
    (void)level;
    (void)message;
    (void)len;
    ++*n;
    OK(teeny_set_log_callback(TEENY_LOG_DEBUG, NULL, NULL));
}

static void log_callback_that_stops_itself(void) {
    int n = 0;
    OK(teeny_set_log_callback(TEENY_LOG_DEBUG, take_log_and_stop, &n));
    use_everything();
    CHECK(n == 1);
    OK(teeny_set_log_callback(TEENY_LOG_DEBUG, NULL, NULL));
}

static void counting(void) {
    teeny_model *model;
    teeny_session *session;
    teeny_session *fork = NULL;
    teeny_sampler *sampler = NULL;
    teeny_sampler *clone = NULL;
    teeny_stream *stream = NULL;
    CHECK(teeny_object_count() == 0);
    model = load("model");
    CHECK(teeny_object_count() == 1);
    session = new_session(model);
    OK(teeny_session_fork(session, &fork));
    OK(teeny_sampler_new(NULL, &sampler));
    OK(teeny_sampler_clone(sampler, &clone));
    OK(teeny_stream_new(session, sampler, "A", 1, NULL, &stream));
    CHECK(teeny_object_count() == 6);
    /* A freed handle is not counted, even if another object still holds what it stood for. */
    teeny_model_free(model);
    teeny_session_free(session);
    teeny_sampler_free(sampler);
    CHECK(teeny_object_count() == 3);
    teeny_stream_free(stream);
    teeny_session_free(fork);
    teeny_sampler_free(clone);
    CHECK(teeny_object_count() == 0);
}

void library_group(void) {
    versions();
    status_names();
    last_error();
    counting();
    logging();
    log_callback_that_stops_itself();
}
