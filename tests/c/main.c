/* abi FOLDER full|quick GROUP...: what teeny.h promises, checked from C.
 *
 * FOLDER holds the models of check.h. Says nothing if all is well.
 */
#include "check.h"

static const struct group {
    const char *name;
    void (*run)(void);
} groups[] = {
    {"library", library_group},
    {"model", model_group},
    {"memory", memory_group},
    {"text", text_group},
    {"sampler", sampler_group},
    {"session", session_group},
    {"cancel", cancel_group},
    {"state", state_group},
    {"generate", generate_group},
    {"score", score_group},
    {"handles", handles_group},
    {"reentry", reentry_group},
    {"stress", stress_group},
    {"random_calls", random_calls_group},
    {"memory_limit", memory_limit_group},
};

static int run(const char *name) {
    size_t i;
    for (i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        if (strcmp(groups[i].name, name) == 0) {
            groups[i].run();
            if (teeny_object_count() != 0) {
                fprintf(stderr, "group %s leaves %lu objects\n", name,
                        (unsigned long)teeny_object_count());
                return 0;
            }
            return 1;
        }
    }
    fprintf(stderr, "no group %s\n", name);
    return 0;
}

int main(int argc, char **argv) {
    int sound = 1;
    int i;
    if (argc < 4) {
        fprintf(stderr, "usage: %s FOLDER full|quick GROUP...\n", argv[0]);
        return 2;
    }
    set_folder(argv[1]);
    quick = strcmp(argv[2], "quick") == 0;
    for (i = 3; i < argc; i++) {
        sound &= run(argv[i]);
    }
    return sound && failure_count() == 0 ? 0 : 1;
}
