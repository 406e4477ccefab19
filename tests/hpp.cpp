// hpp MODEL FOLDER PROMPT TEXT: what teeny.hpp promises.
//
// MODEL has f32 weights, a context of 24 tokens and a vocabulary of 200 characters from 'A' on.
// TEXT is what the runtime generates after PROMPT: 100 tokens with seed 11. FOLDER may be written
// to. Says nothing if all is well. With and without exceptions most of it is the same; what is at
// the end of a group behind `#if THROWS` is about exceptions.
#include "teeny.hpp"

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

#if __cplusplus >= 202002L
#include <ranges>
#include <span>
#endif

#if defined(__cpp_exceptions) && !defined(TEENY_NO_EXCEPTIONS)
#define THROWS 1
#else
#define THROWS 0
#endif

#define CHECK(condition) check(condition, #condition, __LINE__)

namespace {

int failures = 0;
std::string model_path;
std::string folder;
std::string prompt;
std::string expected;

void check(bool sound, const char *what, int line) {
    if (!sound) {
        std::fprintf(stderr, "hpp.cpp:%d: %s\n", line, what);
        failures++;
    }
}

/// For what must not be reached.
void never(std::string_view what) {
    std::fprintf(stderr, "unexpected: %.*s\n", static_cast<int>(what.size()), what.data());
    failures++;
}

/// The value of a result that must have one.
template <class T>
T must(teeny::result<T> result) {
    if (!result) {
        std::fprintf(stderr, "failed: %s\n", result.error().message.c_str());
        std::exit(1);
    }
    return *std::move(result);
}

void must(const teeny::result<void> &result) {
    if (!result) {
        std::fprintf(stderr, "failed: %s\n", result.error().message.c_str());
        std::exit(1);
    }
}

/// Whether it failed like this, with words for it.
template <class T>
bool fails(const teeny::result<T> &result, teeny_status status) {
    return !result && !result.has_value() && result.error().status == status &&
           !result.error().message.empty();
}

#if THROWS
/// Whether a call throws teeny::error with this status, and words.
template <class F>
bool throws(teeny_status status, F call) {
    try {
        call();
    } catch (const teeny::error &error) {
        return error.status() == status && std::strlen(error.what()) > 0;
    }
    return false;
}

/// What callbacks here throw.
struct thrown {
    int number;
};
#endif

teeny::model load() { return must(teeny::model::try_load(model_path)); }

teeny::sampler seeded(std::uint64_t seed) {
    teeny::sampler_options options;
    options.seed = seed;
    return must(teeny::sampler::try_make(options));
}

teeny::generate_options at_most(std::size_t max_tokens) {
    teeny::generate_options options;
    options.max_tokens = max_tokens;
    return options;
}

std::vector<unsigned char> file_bytes() {
    std::ifstream file(model_path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

bool equal(teeny::span<const float> a, teeny::span<const float> b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> copied(teeny::span<const float> numbers) {
    return {numbers.begin(), numbers.end()};
}

template <class T>
constexpr bool movable_handle =
    !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T> &&
    std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T> &&
    std::is_nothrow_default_constructible_v<T> && !std::is_convertible_v<T, bool> &&
    sizeof(T) >= sizeof(void *);

void types() {
    static_assert(movable_handle<teeny::model> && movable_handle<teeny::session>);
    static_assert(movable_handle<teeny::sampler> && movable_handle<teeny::stream>);
    static_assert(sizeof(teeny::model) == sizeof(void *));
    static_assert(!std::is_convertible_v<teeny_model *, teeny::model>, "adopting is explicit");

    using numbers = teeny::span<const float>;
    std::vector<float> vector = {1, 2, 3};
    const std::array<float, 2> array = {4, 5};
    const float plain[] = {6};
    CHECK(numbers(vector).size() == 3 && numbers(array)[1] == 5 && numbers(plain).data() == plain);
    CHECK([](numbers of) { return of.size() == 2 && of[1] == 5; }({0, 5}));
    CHECK(numbers().empty() && numbers(vector).end() - numbers(vector).begin() == 3);
    const teeny::span<float> changeable = vector;
    CHECK(numbers(changeable).data() == vector.data());
    static_assert(!std::is_constructible_v<teeny::span<float>, const std::vector<float> &>);
    static_assert(!std::is_constructible_v<numbers, const std::vector<double> &>);
    static_assert(!std::is_constructible_v<numbers, float>);
#if __cplusplus >= 202002L
    static_assert(std::ranges::input_range<teeny::stream>);
    CHECK(numbers(std::span<float>(vector)).size() == 3);
    CHECK(std::span<const float>(numbers(vector)).size() == 3);
#endif
}

void options() {
    const teeny::model_options m;
    teeny_model_options cm;
    CHECK(teeny_model_options_init(&cm, sizeof cm) == TEENY_OK);
    CHECK(m.device.empty() && cm.device == nullptr && !m.progress && cm.progress == nullptr);
    CHECK(m.max_seq_len == cm.max_seq_len && m.threads == cm.threads && m.dtype == cm.dtype);
    CHECK(m.map == (cm.map != 0) && m.kv_dtype == cm.kv_dtype && m.fast == (cm.fast != 0));

    const teeny::session_options se;
    teeny_session_options cse;
    CHECK(teeny_session_options_init(&cse, sizeof cse) == TEENY_OK);
    CHECK(se.reserve == cse.reserve && se.overflow == cse.overflow);

    const teeny::sampler_options s;
    teeny_sampler_options cs;
    CHECK(teeny_sampler_options_init(&cs, sizeof cs) == TEENY_OK);
    CHECK(s.seed == cs.seed && s.top_k == cs.top_k && s.penalty_last_n == cs.penalty_last_n);
    CHECK(s.temperature == cs.temperature && s.top_p == cs.top_p && s.min_p == cs.min_p);
    CHECK(s.repeat_penalty == cs.repeat_penalty && s.frequency_penalty == cs.frequency_penalty);
    CHECK(s.presence_penalty == cs.presence_penalty);

    const teeny::generate_options g;
    teeny_generate_options cg;
    CHECK(teeny_generate_options_init(&cg, sizeof cg) == TEENY_OK);
    CHECK(g.max_tokens == cg.max_tokens && g.stop.size() == cg.n_stop);
    CHECK(g.raw_bytes == (cg.raw_bytes != 0));

    // Every member arrives.
    teeny::sampler_options all;
    all.seed = 3;
    all.top_k = 9;
    all.penalty_last_n = 5;
    all.temperature = 0.5F;
    all.top_p = 0.75F;
    all.min_p = 0.25F;
    all.repeat_penalty = 1.5F;
    all.frequency_penalty = 0.125F;
    all.presence_penalty = 0.0625F;
    const std::string words = must(must(teeny::sampler::try_make(all)).try_describe());
    for (const char *part : {"3", "9", "5", "0.5", "0.75", "0.25", "1.5", "0.125", "0.0625"}) {
        CHECK(words.find(part) != std::string::npos);
    }
    teeny::model_options elsewhere;
    elsewhere.device = "abacus";
    CHECK(fails(teeny::model::try_load(model_path, elsewhere), TEENY_INVALID_ARGUMENT));
    teeny::model_options shorter;
    shorter.max_seq_len = 7;
    shorter.map = false;
    shorter.dtype = TEENY_DTYPE_F16;
    shorter.threads = 1;
    const teeny::model half = must(teeny::model::try_load(model_path, shorter));
    CHECK(half.max_seq_len() == 7 && half.memory_used() < load().memory_used());
    teeny::session_options strict;
    strict.reserve = 24;
    strict.overflow = TEENY_OVERFLOW_ERROR;
    const teeny::model model = load();
    teeny::session session = must(model.try_new_session(strict));
    CHECK(must(session.try_stats()).kv_bytes > 0);
    CHECK(fails(session.try_generate("A", at_most(100)), TEENY_CONTEXT_FULL));
    teeny::model_options smaller;
    smaller.threads = 2;
    smaller.kv_dtype = TEENY_KV_Q8;
    smaller.fast = true;
    const teeny::model small_kv = must(teeny::model::try_load(model_path, smaller));
    const teeny::session small_session = must(small_kv.try_new_session(strict));
    CHECK(must(small_session.try_stats()).kv_bytes < must(session.try_stats()).kv_bytes);
    smaller.threads = 257;
    CHECK(fails(teeny::model::try_load(model_path, smaller), TEENY_INVALID_ARGUMENT));
#if __cplusplus >= 202002L
    CHECK(must(must(teeny::sampler::try_make({.seed = 5})).try_describe()).find("seed 5") == 0);
#endif
}

void library() {
    CHECK(teeny::abi_matches() && teeny::version() == teeny_version());
    CHECK(teeny::build_info() == teeny_build_info() && !teeny::build_info().empty());
    CHECK(teeny::status_name(TEENY_IO) == "TEENY_IO");
    CHECK(teeny::object_count() == 0);
    const teeny::model model = load();
    CHECK(teeny::object_count() == 1);
}

void results() {
    teeny::result<std::string> good = std::string("text");
    CHECK(good && good.has_value() && *good == "text" && good->size() == 4);
    CHECK(good.error().status == TEENY_OK && good.value_or("other") == "text");
    const teeny::result<std::string> bad = teeny::failure{TEENY_IO, "no disk"};
    CHECK(!bad && bad.value_or("other") == "other" && bad.error().message == "no disk");
    const std::string moved = *std::move(good);
    CHECK(moved == "text");
    teeny::result<std::unique_ptr<int>> only_moved = std::make_unique<int>(7);
    CHECK(**only_moved == 7 && *std::move(only_moved).value_or(nullptr) == 7);
    const teeny::result<void> done;
    const teeny::result<void> not_done = teeny::failure{TEENY_BUSY, "later"};
    CHECK(done && !not_done && not_done.error().status == TEENY_BUSY);
#if THROWS
    done.value();
    CHECK(bad.value_or("x") == "x" && throws(TEENY_IO, [&] { (void)bad.value(); }));
    CHECK(throws(TEENY_BUSY, [&] { not_done.value(); }));
    const teeny::result<std::string> failed = teeny::model::try_load("nowhere").error();
    try {
        teeny::model::load("nowhere");
        never("no exception");
    } catch (const std::runtime_error &error) {
        CHECK(error.what() == failed.error().message);
    }
#endif
}

void models() {
    const teeny::model model = load();
    CHECK(model.vocab_size() == 200 && model.max_seq_len() == 24 && model.n_embd() == 30);
    CHECK(model.n_params() == teeny_model_n_params(model.get()) && model.n_params() > 0);
    CHECK(model.memory_used() == 4 * model.n_params());

    CHECK(model.metadata_count() > 0);
    for (std::size_t i = 0; i < model.metadata_count(); i++) {
        const auto [key, value] = must(model.try_metadata_at(i));
        CHECK(!key.empty() && model.find_metadata(key) == value);
    }
    CHECK(fails(model.try_metadata_at(model.metadata_count()), TEENY_NOT_FOUND));
    CHECK(!model.find_metadata("no such key") && !model.find_metadata(""));

    const std::vector<std::uint32_t> tokens = must(model.try_encode("AB\u00e9"));
    CHECK((tokens == std::vector<std::uint32_t>{0, 1, 0xe9 - 'A'}));
    CHECK(must(model.try_decode(tokens)) == "AB\u00e9");
    CHECK(must(model.try_token_bytes(tokens[2])) == "\u00e9");
    CHECK(must(model.try_encode("")).empty() && must(model.try_decode({})).empty());
    CHECK(fails(model.try_encode("A B"), TEENY_TOKENIZER));
    CHECK(fails(model.try_encode("A\xff"), TEENY_INVALID_ARGUMENT));
    const std::uint32_t outside[] = {200};
    CHECK(fails(model.try_decode(outside), TEENY_TOKENIZER));
    CHECK(fails(model.try_token_bytes(200), TEENY_INVALID_ARGUMENT));

    CHECK(fails(teeny::model::try_load("no/such/file"), TEENY_IO));
    CHECK(teeny::model::try_load("no/such/file").error().message.find("no/such/file") !=
          std::string::npos);
    const std::string with_more = model_path + '\0' + "more";
    CHECK(fails(teeny::model::try_load(with_more), TEENY_INVALID_ARGUMENT));
    CHECK(must(model.try_score_text("ABC")).n_scored == 2);
    CHECK(fails(model.try_score_text("A"), TEENY_INVALID_ARGUMENT));
#if THROWS
    CHECK(model.encode("AB") == must(model.try_encode("AB")) && model.decode(tokens) == "AB\u00e9");
    CHECK(model.token_bytes(1) == "B" && model.metadata_at(0) == must(model.try_metadata_at(0)));
    CHECK(model.score_text("ABC").log_prob == must(model.try_score_text("ABC")).log_prob);
    CHECK(throws(TEENY_IO, [] { teeny::model::load("no/such/file"); }));
    CHECK(throws(TEENY_TOKENIZER, [&] { (void)model.encode("A B"); }));
    CHECK(throws(TEENY_NOT_FOUND, [&] { (void)model.metadata_at(9999); }));
#endif
}

void handles() {
    teeny::model model = load();
    teeny_model *raw = model.get();
    CHECK(raw != nullptr && model);
    teeny::model moved = std::move(model);
    CHECK(moved.get() == raw && !model && model.get() == nullptr);
    teeny::model &same = moved;
    moved = std::move(same);
    CHECK(moved.get() == raw);
    model = load();
    CHECK(model && teeny::object_count() == 2);
    model = std::move(moved);
    CHECK(model.get() == raw && !moved && teeny::object_count() == 1);
    teeny_model *released = model.release();
    CHECK(released == raw && !model && teeny::object_count() == 1);
    const teeny::model adopted(released);
    CHECK(adopted.vocab_size() == 200);

    // Empty ones fail, and say so.
    CHECK(model.vocab_size() == 0 && !model.find_metadata("vocab_size"));
    CHECK(fails(model.try_encode("A"), TEENY_NULL_POINTER));
    CHECK(fails(model.try_new_session(), TEENY_NULL_POINTER));
    CHECK(fails(model.try_generate("A"), TEENY_NULL_POINTER));
    teeny::session no_session;
    CHECK(fails(no_session.try_decode(0), TEENY_NULL_POINTER) && no_session.position() == 0);
    CHECK(fails(no_session.try_generate("A"), TEENY_NULL_POINTER));
    CHECK(fails(no_session.try_save(), TEENY_NULL_POINTER));
    no_session.cancel();
    teeny::sampler no_sampler;
    CHECK(fails(no_sampler.try_add_top_k(1), TEENY_NULL_POINTER));
    CHECK(fails(no_sampler.try_describe(), TEENY_NULL_POINTER));
    teeny::session session = must(adopted.try_new_session());
    CHECK(fails(session.try_generate("A", no_sampler), TEENY_NULL_POINTER));
    CHECK(fails(session.try_stream("A", no_sampler), TEENY_NULL_POINTER));
    CHECK(fails(session.try_sample(no_sampler), TEENY_NULL_POINTER));
    teeny::stream no_stream;
    CHECK(fails(no_stream.try_next(), TEENY_NULL_POINTER));
    CHECK(no_stream.end_reason() == TEENY_END_NONE);
    for (std::string_view piece : no_stream) {
        never(piece);
    }
    CHECK(no_stream.failure().status == TEENY_NULL_POINTER);

    // In any order.
    teeny::stream stream = must(session.try_stream("A"));
    session = teeny::session();
    CHECK(!must(stream.try_next()).empty());
}

void samplers() {
    std::vector<float> logits(200, 0.0F);
    logits[17] = 2;
    teeny::sampler greedy = must(teeny::sampler::try_greedy());
    CHECK(must(greedy.try_sample(logits)) == 17);
    teeny::sampler chain = must(teeny::sampler::try_chain(7));
    must(chain.try_add_logit_bias({{17, -INFINITY}}));
    must(chain.try_add_penalties(8, 1.25F));
    must(chain.try_add_top_k(40));
    must(chain.try_add_top_p(0.9F));
    must(chain.try_add_min_p(0.01F));
    must(chain.try_add_temperature(0.8F));
    const std::string words = must(chain.try_describe());
    CHECK(words.find("seed 7") == 0 && words.find("top_k 40") != std::string::npos);
    teeny::sampler twin = must(chain.try_clone());
    for (int i = 0; i < 50; i++) {
        const std::uint32_t token = must(chain.try_sample(logits));
        CHECK(token != 17 && token == must(twin.try_sample(logits)));
    }
    must(chain.try_reset());
    must(twin.try_reset());
    must(twin.try_accept(3));
    CHECK(fails(chain.try_add_temperature(-1), TEENY_INVALID_ARGUMENT));
    CHECK(fails(chain.try_sample({}), TEENY_INVALID_ARGUMENT) ||
          fails(chain.try_sample({}), TEENY_NULL_POINTER));
#if THROWS
    teeny::sampler fluent = teeny::sampler::chain(7)
                                .add_logit_bias({{17, -INFINITY}})
                                .add_penalties(8, 1.25F)
                                .add_top_k(40)
                                .add_top_p(0.9F)
                                .add_min_p(0.01F)
                                .add_temperature(0.8F);
    CHECK(fluent.describe() == words);
    teeny::sampler steps = teeny::sampler::chain();
    steps.add_top_k(3).add_temperature(1);
    const teeny::sampler again = teeny::sampler::chain().add_top_k(3).add_temperature(1);
    CHECK(steps && steps.describe() == again.describe());
    CHECK(fluent.sample(logits) == must(chain.try_sample(logits)));
    fluent.accept(1);
    fluent.reset();
    CHECK(fluent.clone().describe() == words && teeny::sampler::greedy().sample(logits) == 17);
    CHECK(throws(TEENY_INVALID_ARGUMENT, [] { teeny::sampler::chain().add_top_p(2); }));
    teeny::sampler_options wrong;
    wrong.temperature = -1;
    CHECK(throws(TEENY_INVALID_ARGUMENT, [&] { teeny::sampler::make(wrong); }));
    CHECK(teeny::object_count() == 6);
#endif
}

void sessions() {
    const teeny::model model = load();
    teeny::session session = must(model.try_new_session());
    CHECK(fails(session.try_logits(), TEENY_INVALID_ARGUMENT) && session.position() == 0);
    const std::vector<std::uint32_t> tokens = must(model.try_encode("ABCDEF"));
    must(session.try_feed(tokens));
    CHECK(session.position() == 6);
    const std::vector<float> after_six = copied(must(session.try_logits()));
    CHECK(after_six.size() == 200 && must(session.try_hidden()).size() == 30);

    teeny::session fork = must(session.try_fork());
    must(fork.try_decode(9));
    CHECK(fork.position() == 7 && session.position() == 6);
    CHECK(!equal(must(fork.try_logits()), after_six));
    CHECK(equal(must(session.try_logits()), after_six));
    must(fork.try_truncate(6));
    CHECK(equal(must(fork.try_logits()), after_six));
    CHECK(fails(fork.try_truncate(7), TEENY_INVALID_ARGUMENT));

    const std::vector<unsigned char> saved = must(session.try_save());
    teeny::session restored = must(model.try_new_session());
    must(restored.try_restore(saved));
    CHECK(restored.position() == 6 && equal(must(restored.try_logits()), after_six));
    const std::string path = folder + "/saved.session";
    must(session.try_save_file(path));
    must(restored.try_reset());
    CHECK(restored.position() == 0);
    must(restored.try_restore_file(path));
    CHECK(equal(must(restored.try_logits()), after_six));
    const std::vector<unsigned char> half(saved.begin(), saved.begin() + 100);
    CHECK(fails(restored.try_restore(half), TEENY_FORMAT) && restored.position() == 6);
    CHECK(fails(session.try_save_file(folder + "/no/folder"), TEENY_IO));
    CHECK(fails(restored.try_restore_file(folder + "/nothing"), TEENY_IO));
    const std::string with_zero = path + '\0';
    CHECK(fails(session.try_save_file(with_zero), TEENY_INVALID_ARGUMENT));
    CHECK(fails(restored.try_restore_file(with_zero), TEENY_INVALID_ARGUMENT));

    teeny::sampler greedy = must(teeny::sampler::try_greedy());
    CHECK(must(session.try_sample(greedy)) == must(greedy.try_sample(after_six)));

    teeny::session scored = must(model.try_new_session());
    const teeny::token_scores scores = must(scored.try_score(tokens, 2));
    CHECK(scores.log_probs.size() == 6 && std::isnan(scores.log_probs[0]) && scores.top_n == 2);
    CHECK(scores.top_tokens.size() == 12 && scores.top_tokens[0] == UINT32_MAX);
    double sum = 0;
    for (std::size_t i = 1; i < 6; i++) {
        sum += static_cast<double>(scores.log_probs[i]);
        CHECK(scores.top_log_probs[2 * i] >= scores.top_log_probs[2 * i + 1]);
        CHECK(scores.top_log_probs[2 * i] >= scores.log_probs[i]);
    }
    CHECK(std::abs(sum - must(model.try_score_text("ABCDEF")).log_prob) < 1e-4);
    CHECK(must(scored.try_score(tokens)).top_tokens.empty());
    CHECK(fails(scored.try_score(tokens, SIZE_MAX / 2), TEENY_OUT_OF_MEMORY));
    CHECK(must(session.try_stats()).prefill_tokens == 6);

    session.cancel();
    CHECK(fails(session.try_feed(tokens), TEENY_CANCELLED));
    session.cancel();
    session.cancel(false);
    must(session.try_decode(1));
    CHECK(fails(session.try_feed({}), TEENY_INVALID_ARGUMENT));
    CHECK(fails(session.try_score({}), TEENY_INVALID_ARGUMENT));
    CHECK(fails(session.try_score({}, 3), TEENY_INVALID_ARGUMENT));
    // 0 and 5 are tokens, not a pointer and a length.
    teeny::session fed = must(model.try_new_session());
    must(fed.try_feed({0, 5}));
    CHECK(fed.position() == 2);
#if THROWS
    session.reset();
    session.feed(tokens);
    session.decode(9);
    session.truncate(6);
    CHECK(equal(session.logits(), after_six) && session.hidden().size() == 30);
    CHECK(session.sample(greedy) == must(session.try_sample(greedy)));
    CHECK(session.save() == must(session.try_save()) && session.fork().position() == 6);
    session.save_file(path);
    restored.restore(saved);
    restored.restore_file(path);
    scored.reset();
    CHECK(scored.score(tokens, 2).top_tokens == scores.top_tokens);
    CHECK(session.stats().prefill_tokens == 12);
    CHECK(throws(TEENY_FORMAT, [&] { restored.restore(half); }));
    CHECK(throws(TEENY_INVALID_ARGUMENT, [&] { session.truncate(99); }));
    CHECK(throws(TEENY_IO, [&] { session.save_file(folder + "/no/folder"); }));
#endif
}

std::string plain_text;
void append(std::string_view piece) { plain_text += piece; }

void generating() {
    const teeny::model model = load();
    const teeny::generate_options hundred = at_most(100);
    teeny::sampler_options eleven;
    eleven.seed = 11;
    CHECK(must(model.try_generate(prompt, eleven, hundred)) == expected);
    std::string text;
    std::size_t pieces = 0;
    const auto take = [&](std::string_view piece) {
        CHECK(!piece.empty());
        text += piece;
        pieces++;
        return true;
    };
    must(model.try_generate(prompt, take, eleven, hundred));
    CHECK(text == expected && pieces > 50);

    teeny::session session = must(model.try_new_session());
    teeny::sampler sampler = seeded(11);
    CHECK(must(session.try_generate(prompt, sampler, hundred)) == expected);
    CHECK(session.position() == must(model.try_encode(prompt + expected)).size());
    must(session.try_reset());
    must(sampler.try_reset());
    text.clear();
    must(session.try_generate(prompt, sampler, take, at_most(40)));
    must(session.try_generate("", sampler, append, at_most(60)));
    CHECK(text + plain_text == expected);
    // Without a sampler: a new one each time.
    must(session.try_reset());
    const std::string by_default = must(session.try_generate("A"));
    must(session.try_reset());
    text.clear();
    must(session.try_generate("A", take));
    CHECK(text == by_default && by_default == must(model.try_generate("A")));
    CHECK(by_default != expected && !by_default.empty());

    // A callback that stops.
    must(session.try_reset());
    int calls = 0;
    must(session.try_generate("A", [&calls](std::string_view) { return ++calls < 3; }));
    CHECK(calls == 3 && must(session.try_stats()).end_reason == TEENY_END_CANCELLED);
    must(model.try_generate("A", [](std::string_view) { return false; }));
    // That somebody else cancels is a failure.
    must(session.try_reset());
    CHECK(fails(session.try_generate("A", [&session](std::string_view) { session.cancel(); }),
                TEENY_CANCELLED));
    // So is calling the session from its callback.
    teeny_status inside = TEENY_OK;
    must(session.try_generate("A", [&](std::string_view) {
        inside = session.try_decode(0).error().status;
        return false;
    }));
    CHECK(inside == TEENY_BUSY);

    teeny::generate_options stopping = hundred;
    const std::string end = expected.substr(0, expected.size() / 2);
    const std::string stop = must(model.try_decode(teeny::span<const std::uint32_t>(
        must(model.try_encode(end)).data() + 20, 3)));
    stopping.stop = {"never \xc2\xa0", stop};
    CHECK(must(model.try_generate(prompt, eleven, stopping)) ==
          expected.substr(0, expected.find(stop)));
    stopping.stop = {"\xff"};
    CHECK(fails(model.try_generate(prompt, eleven, stopping), TEENY_INVALID_ARGUMENT));
    teeny::generate_options raw = hundred;
    raw.raw_bytes = true;
    CHECK(must(model.try_generate(prompt, eleven, raw)) == expected);
    CHECK(fails(model.try_generate("no spaces"), TEENY_TOKENIZER));
    CHECK(fails(session.try_generate("no spaces", append), TEENY_TOKENIZER));
#if THROWS
    CHECK(model.generate(prompt, eleven, hundred) == expected);
    text.clear();
    model.generate(prompt, take, eleven, hundred);
    CHECK(text == expected);
    session.reset();
    sampler.reset();
    text.clear();
    session.generate(prompt, sampler, take, hundred);
    CHECK(text == expected);
    session.reset();
    sampler.reset();
    CHECK(session.generate(prompt, sampler, hundred) == expected);
    session.reset();
    CHECK(session.generate("A", hundred).size() <= by_default.size());
    session.generate("A", [](std::string_view) { return false; });
    CHECK(throws(TEENY_TOKENIZER, [&] { session.generate("no spaces"); }));
    CHECK(throws(TEENY_TOKENIZER, [&] { model.generate("no spaces", append); }));

    // What callbacks throw comes out, in both forms, and all works on.
    for (bool trying : {false, true}) {
        calls = 0;
        const auto throwing = [&calls](std::string_view) {
            if (++calls == 2) {
                throw thrown{42};
            }
        };
        for (int of = 0; of < 2; of++) {
            calls = 0;
            int caught = 0;
            try {
                if (of == 0) {
                    trying ? must(session.try_generate("A", throwing))
                           : session.generate("A", throwing);
                } else {
                    trying ? must(model.try_generate("A", throwing))
                           : model.generate("A", throwing);
                }
            } catch (const thrown &what) {
                caught = what.number;
            }
            CHECK(caught == 42 && calls == 2);
        }
    }
    session.reset();
    sampler.reset();
    CHECK(session.generate(prompt, sampler, hundred) == expected);
#endif
}

void streams() {
    const teeny::model model = load();
    teeny::session session = must(model.try_new_session());
    teeny::sampler sampler = seeded(11);
    std::string text;
    for (std::string_view piece : *session.try_stream(prompt, sampler, at_most(100))) {
        text += piece;
    }
    CHECK(text == expected);

    // Left early, and gone on with, in a loop and by hand.
    must(session.try_reset());
    must(sampler.try_reset());
    teeny::stream stream = must(session.try_stream(prompt, sampler, at_most(100)));
    text.clear();
    int pieces = 0;
    for (std::string_view piece : stream) {
        text += piece;
        if (++pieces == 10) {
            break;
        }
    }
    CHECK(stream.end_reason() == TEENY_END_NONE && text.size() < expected.size());
    text += must(stream.try_next());
    teeny::stream moved = std::move(stream);
    for (std::string_view piece : moved) {
        text += piece;
    }
    CHECK(text == expected && moved.end_reason() == TEENY_END_LENGTH);
    CHECK(moved.failure().status == TEENY_OK && must(moved.try_next()).empty());
    for (std::string_view piece : moved) {
        never(piece);
    }

    // Nothing to come.
    for (std::string_view piece : *session.try_stream("A", at_most(0))) {
        never(piece);
    }
    CHECK(fails(session.try_stream("no spaces"), TEENY_TOKENIZER));

    // One that fails on the way: the loop ends.
    teeny::session_options strict;
    strict.overflow = TEENY_OVERFLOW_ERROR;
    teeny::session full = must(model.try_new_session(strict));
    teeny::stream failing = must(full.try_stream("A", at_most(100)));
    pieces = 0;
    for (std::string_view piece : failing) {
        CHECK(!piece.empty());
        pieces++;
    }
    CHECK(pieces > 10 && failing.failure().status == TEENY_CONTEXT_FULL);
    CHECK(!failing.failure().message.empty() && failing.end_reason() == TEENY_END_FAILED);
    must(full.try_reset());
    std::size_t n = 0;
    teeny_status status = TEENY_OK;
    teeny::stream by_hand = must(full.try_stream("A", at_most(100)));
    while (status == TEENY_OK) {
        const teeny::result<std::string_view> piece = by_hand.try_next();
        status = piece.error().status;
        n += piece ? 1 : 0;
    }
    CHECK(status == TEENY_CONTEXT_FULL && n == static_cast<std::size_t>(pieces));

    // What failed once is forgotten when the text goes on.
    must(session.try_reset());
    teeny::stream going_on = must(session.try_stream("A", at_most(3)));
    must(session.try_generate("A", [&going_on](std::string_view) {
        for (std::string_view piece : going_on) {
            never(piece);
        }
        CHECK(going_on.failure().status == TEENY_BUSY);
        return false;
    }));
    int later = 0;
    for (std::string_view piece : going_on) {
        later += piece.empty() ? 0 : 1;
    }
    CHECK(later == 3 && going_on.failure().status == TEENY_OK);
    CHECK(going_on.failure().message.empty());

    // The interface of iterators.
    must(session.try_reset());
    teeny::stream letters = must(session.try_stream("A", at_most(3)));
    teeny::stream::iterator i = letters.begin();
    CHECK(i != letters.end() && letters.end() != i && i->size() == (*i).size());
    i++;
    ++i;
    CHECK(!(i == letters.end()) && !(letters.end() == i));
    CHECK(++i == letters.end() && teeny::stream::iterator() == letters.end());
#if THROWS
    must(session.try_reset());
    must(sampler.try_reset());
    text.clear();
    for (std::string_view piece : session.stream(prompt, sampler, at_most(100))) {
        text += piece;
    }
    CHECK(text == expected);
    full.reset();
    int before = 0;
    CHECK(throws(TEENY_CONTEXT_FULL, [&] {
        for (std::string_view piece : full.stream("A", at_most(100))) {
            before += piece.empty() ? 0 : 1;
        }
    }));
    CHECK(before == pieces);
    CHECK(throws(TEENY_TOKENIZER, [&] { (void)session.stream("no spaces"); }));
    session.reset();
    teeny::stream pulled = session.stream("A", at_most(1));
    CHECK(!pulled.next().empty() && pulled.next().empty());
    teeny::stream adopted(pulled.release());
    CHECK(adopted.next().empty() && !pulled);
    CHECK(throws(TEENY_NULL_POINTER, [&] { (void)pulled.next(); }));
#endif
}

void memory() {
    const std::vector<unsigned char> bytes = file_bytes();
    int released = 0;
    const auto owner = [&released, &bytes] {
        auto *copy = new std::vector<unsigned char>(bytes);
        return std::shared_ptr<std::vector<unsigned char>>(copy, [&released](auto *data) {
            released++;
            delete data;
        });
    };
    {
        teeny::session session;
        teeny::session fork;
        {
            auto data = owner();
            const teeny::span<const unsigned char> view = *data;
            teeny::model model = must(teeny::model::try_load_memory(std::move(data), view));
            CHECK(data == nullptr);
            session = must(model.try_new_session());
            fork = must(session.try_fork());
            CHECK(released == 0);
        }
        CHECK(released == 0);
        must(session.try_generate("A", at_most(5)));
        session = teeny::session();
        CHECK(released == 0);
        must(fork.try_generate("A", at_most(5)));
    }
    CHECK(released == 1);

    // Converted weights need the memory no longer than the call.
    teeny::model_options half;
    half.dtype = TEENY_DTYPE_BF16;
    auto data = owner();
    const teeny::span<const unsigned char> view = *data;
    const teeny::model converted =
        must(teeny::model::try_load_memory(std::move(data), view, half));
    CHECK(released == 2 && converted.vocab_size() == 200);

    // A failed load keeps nothing.
    data = owner();
    CHECK(fails(teeny::model::try_load_memory(data, {data->data(), data->size() / 2}),
                TEENY_FORMAT));
    CHECK(released == 2 && data.use_count() == 1);
    data.reset();
    CHECK(released == 3);

    teeny::sampler_options eleven;
    eleven.seed = 11;
    std::vector<unsigned char> moved = bytes;
    const teeny::model owning = must(teeny::model::try_load_memory(std::move(moved)));
    CHECK(moved.empty() && must(owning.try_generate(prompt, eleven, at_most(100))) == expected);
    const teeny::model borrowing = must(teeny::model::try_load_static(bytes));
    CHECK(must(borrowing.try_generate(prompt, eleven, at_most(100))) == expected);
    CHECK(fails(teeny::model::try_load_memory(std::vector<unsigned char>(1000)), TEENY_FORMAT));
    CHECK(!teeny::model::try_load_static({}));
#if THROWS
    moved = bytes;
    CHECK(teeny::model::load_memory(std::move(moved)).vocab_size() == 200);
    CHECK(teeny::model::load_static(bytes).vocab_size() == 200);
    data = owner();
    CHECK(teeny::model::load_memory(data, *data).vocab_size() == 200 && released == 3);
    data.reset();
    CHECK(released == 4);
    data = owner();
    CHECK(throws(TEENY_FORMAT, [&] { teeny::model::load_memory(data, {data->data(), 100}); }));
    // A progress callback that throws leaves no model and no owner behind.
    teeny::model_options throwing;
    throwing.progress = [](float) { throw thrown{1}; };
    int caught = 0;
    try {
        teeny::model::load_memory(data, *data, throwing);
    } catch (const thrown &what) {
        caught = what.number;
    }
    CHECK(caught == 1 && data.use_count() == 1);
#endif
}

void progress() {
    teeny::model_options options;
    std::vector<float> told;
    options.progress = [&told](float done) { told.push_back(done); };
    CHECK(must(teeny::model::try_load(model_path, options)).vocab_size() == 200);
    CHECK(told.size() >= 2 && told.front() == 0 && told.back() == 1);
    // Nobody to tell.
    bool (*no_function)(float) = nullptr;
    CHECK(!teeny::progress_callback(no_function) && !teeny::progress_callback(nullptr));
    options.progress = std::function<bool(float)>();
    CHECK(!options.progress && must(teeny::model::try_load(model_path, options)).n_embd() == 30);
    told.clear();
    options.progress = [&told](float done) {
        told.push_back(done);
        return false;
    };
    CHECK(fails(teeny::model::try_load(model_path, options), TEENY_CANCELLED) && told.size() == 1);
#if THROWS
    CHECK(throws(TEENY_CANCELLED, [&] { teeny::model::load(model_path, options); }));
    for (float when : {0.0F, 1.0F}) {
        options.progress = [when](float done) {
            if (done >= when) {
                throw thrown{7};
            }
        };
        for (bool trying : {false, true}) {
            int caught = 0;
            try {
                trying ? must(teeny::model::try_load(model_path, options))
                       : teeny::model::load(model_path, options);
            } catch (const thrown &what) {
                caught = what.number;
            }
            CHECK(caught == 7 && teeny::object_count() == 0);
        }
    }
#endif
}

void logging() {
    std::vector<std::string> messages;
    must(teeny::try_set_log(TEENY_LOG_DEBUG, [&](teeny_log_level level, std::string_view message) {
        CHECK(level >= TEENY_LOG_ERROR && level <= TEENY_LOG_DEBUG);
        messages.emplace_back(message);
    }));
    (void)teeny::model::try_load("no/such/file");
    CHECK(!messages.empty() && messages.back().find("no/such/file") != std::string::npos);
    const std::size_t n = messages.size();
    CHECK(fails(teeny::try_set_log(static_cast<teeny_log_level>(99),
                                   [](teeny_log_level, std::string_view) {}),
                TEENY_INVALID_ARGUMENT));
    (void)teeny::model::try_load("no/such/file");
    CHECK(messages.size() > n);
    teeny::clear_log();
    messages.clear();
    (void)teeny::model::try_load("no/such/file");
    CHECK(messages.empty());
#if THROWS
    int calls = 0;
    teeny::set_log(TEENY_LOG_DEBUG, [&calls](teeny_log_level, std::string_view) {
        calls++;
        throw thrown{1};
    });
    CHECK(fails(teeny::model::try_load("no/such/file"), TEENY_IO) && calls > 0);
    teeny::clear_log();
#endif
}

void threads() {
    const teeny::model model = load();
    std::array<std::string, 2> texts;
    std::array<std::thread, 2> running;
    for (std::size_t i = 0; i < 2; i++) {
        // The session is made here, used there, and goes there.
        running[i] = std::thread([&texts, i, session = must(model.try_new_session())]() mutable {
            for (int round = 0; round < 5; round++) {
                teeny::sampler sampler = seeded(11);
                must(session.try_reset());
                texts[i] = must(session.try_generate(prompt, sampler, at_most(100)));
            }
        });
    }
    for (std::thread &thread : running) {
        thread.join();
    }
    CHECK(texts[0] == expected && texts[1] == expected);

    // Cancelled from another thread.
    teeny::session session = must(model.try_new_session());
    std::thread endless([&session] {
        CHECK(fails(session.try_generate("A", [](std::string_view) {}, at_most(SIZE_MAX)),
                    TEENY_CANCELLED));
    });
    session.cancel();
    endless.join();
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: %s MODEL FOLDER PROMPT TEXT\n", argv[0]);
        return 2;
    }
    model_path = argv[1];
    folder = argv[2];
    prompt = argv[3];
    expected = argv[4];
    for (void (*group)() : {types, options, library, results, models, handles, samplers, sessions,
                            generating, streams, memory, progress, logging, threads}) {
        group();
        CHECK(teeny::object_count() == 0);
    }
    return failures == 0 ? 0 : 1;
}
