// teeny for C++17 and later: the objects of teeny.h as types that free themselves.
//
//     teeny::model model = teeny::model::load("model.safetensors");
//     teeny::session session = model.new_session();
//     for (std::string_view piece : session.stream("ROMEO:")) {
//         std::cout << piece << std::flush;
//     }
//
// Errors. What can fail is there twice: `load` throws teeny::error, `try_load` returns a
// teeny::result, which holds the value or a teeny::failure. Without exceptions (-fno-exceptions, or
// TEENY_NO_EXCEPTIONS defined) only the second form is there. Memory that C++ itself cannot
// allocate is std::bad_alloc in both. Functions that are noexcept give 0 or nothing where they
// fail.
//
// Objects are handles that can be moved but not copied. One that was moved from is empty: it may be
// assigned to and destroyed, and each call fails with TEENY_NULL_POINTER. Objects keep alive what
// they need, so the order in which they go does not matter.
//
// Callbacks are callables that return void, or bool: true goes on, false stops. An exception in one
// stops the call and leaves it, the try_ form too, as soon as the library has returned.
//
// Threads. A model may be used by many threads at once; a session, sampler or stream by one call at
// a time on any thread, and a second one fails with TEENY_BUSY. `session::cancel` may be called at
// any time. Moving and destroying a handle is not for several threads at once.
//
// Views that are handed out (std::string_view, teeny::span) live as long as teeny.h says at the C
// function of the same name, which also says what each function does in detail.

#ifndef TEENY_HPP
#define TEENY_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "teeny.h"

#if defined(__cpp_exceptions) && !defined(TEENY_NO_EXCEPTIONS)
#define TEENY_HPP_THROWS 1
#else
#define TEENY_HPP_THROWS 0
#endif

namespace teeny {

// Files compiled with and without exceptions may be linked together: their types differ.
#if TEENY_HPP_THROWS
inline namespace throwing {
#else
inline namespace quiet {
#endif

/// Why a call failed.
struct failure {
    /// Which kind of failure it is; TEENY_OK for none.
    ::teeny_status status = TEENY_OK;
    /// The same in words.
    std::string message;
};

#if TEENY_HPP_THROWS
/// What the throwing functions throw; `what` has the message.
class error : public std::runtime_error {
  public:
    /// An exception from a failure.
    explicit error(const failure &why) : std::runtime_error(why.message), status_(why.status) {}

    /// Which kind of failure it is.
    ::teeny_status status() const noexcept { return status_; }

  private:
    ::teeny_status status_;
};
#endif

/// A value, or why there is none; std::expected in short.
template <class T>
class [[nodiscard]] result {
  public:
    /// A success.
    result(T &&value) : value_(std::move(value)) {}
    /// A success.
    result(const T &value) : value_(value) {}
    /// A failure.
    result(failure why) : failure_(std::move(why)) {}

    /// Whether there is a value.
    bool has_value() const noexcept { return value_.has_value(); }
    /// Whether there is a value.
    explicit operator bool() const noexcept { return has_value(); }
    /// The value, which must be there.
    T &operator*() & noexcept { return *value_; }
    /// The value, which must be there.
    const T &operator*() const & noexcept { return *value_; }
    /// The value itself, so that `for (auto piece : *session.try_stream(prompt))` keeps the stream.
    T operator*() && { return std::move(*value_); }
    /// A member of the value, which must be there.
    T *operator->() noexcept { return &*value_; }
    /// A member of the value, which must be there.
    const T *operator->() const noexcept { return &*value_; }
    /// The value, or another one.
    template <class U>
    T value_or(U &&other) const & {
        return value_ ? *value_ : static_cast<T>(std::forward<U>(other));
    }
    /// The value, or another one.
    template <class U>
    T value_or(U &&other) && {
        return value_ ? std::move(*value_) : static_cast<T>(std::forward<U>(other));
    }
    /// Why there is no value; its status is TEENY_OK if there is one.
    const failure &error() const noexcept { return failure_; }
#if TEENY_HPP_THROWS
    /// The value; throws teeny::error if there is none.
    T &value() & { return check(), *value_; }
    /// The value; throws teeny::error if there is none.
    const T &value() const & { return check(), *value_; }
    /// The value; throws teeny::error if there is none.
    T value() && { return check(), std::move(*value_); }
#endif

  private:
#if TEENY_HPP_THROWS
    void check() const {
        if (!value_) {
            throw teeny::error(failure_);
        }
    }
#endif
    std::optional<T> value_;
    failure failure_;
};

/// Success, or why there is none.
template <>
class [[nodiscard]] result<void> {
  public:
    /// A success.
    result() = default;
    /// A failure.
    result(failure why) : failure_(std::move(why)) {}

    /// Whether it is a success.
    bool has_value() const noexcept { return failure_.status == TEENY_OK; }
    /// Whether it is a success.
    explicit operator bool() const noexcept { return has_value(); }
    /// Why it is none; its status is TEENY_OK if it is one.
    const failure &error() const noexcept { return failure_; }
#if TEENY_HPP_THROWS
    /// Throws teeny::error if it is none.
    void value() const {
        if (!has_value()) {
            throw teeny::error(failure_);
        }
    }
#endif

  private:
    failure failure_;
};

/// Elements that lie one after the other and belong to somebody else; std::span in short.
template <class T>
class span {
  public:
    /// No elements.
    constexpr span() noexcept = default;
    /// `size` elements from `data` on.
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    /// The elements of an array, std::array, std::vector, std::span and the like.
    template <class C,
              class E = std::remove_pointer_t<decltype(std::data(std::declval<C &>()))>,
              class = decltype(std::size(std::declval<C &>())),
              class = std::enable_if_t<!std::is_same_v<std::decay_t<C>, span> &&
                                       std::is_convertible_v<E (*)[], T (*)[]>>>
    constexpr span(C &&elements) noexcept
        : data_(std::data(elements)), size_(std::size(elements)) {}
    /// The elements in braces, which live as long as the call that they are an argument of.
    template <class E = T, class = std::enable_if_t<std::is_const_v<E>>>
    constexpr span(std::initializer_list<std::remove_const_t<E>> elements) noexcept
        : data_(std::data(elements)), size_(elements.size()) {}

    /// The first element.
    constexpr T *data() const noexcept { return data_; }
    /// How many there are.
    constexpr std::size_t size() const noexcept { return size_; }
    /// Whether there are none.
    constexpr bool empty() const noexcept { return size_ == 0; }
    /// The element at `i`, which must be less than `size()`.
    constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }
    /// The first element.
    constexpr T *begin() const noexcept { return data_; }
    /// Past the last element.
    constexpr T *end() const noexcept { return data_ + size_; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/// What `session::stats` gives.
using session_stats = ::teeny_session_stats;
/// What `model::score_text` gives.
using text_score = ::teeny_score;
/// What `sampler::add_logit_bias` takes.
using logit_bias = ::teeny_logit_bias;

namespace detail {

inline failure failed(::teeny_status status) {
    const char *message = ::teeny_last_error();
    return {status, *message != '\0' ? message : ::teeny_status_name(status)};
}

inline result<void> checked(::teeny_status status) {
    return status == TEENY_OK ? result<void>() : failed(status);
}

/// `value`, which a call with this status has written.
template <class T>
result<T> checked(::teeny_status status, T &value) {
    if (status != TEENY_OK) {
        return failed(status);
    }
    return std::move(value);
}

/// The object `T` from the handle that `call(&handle)` writes.
template <class T, class Call>
result<T> made(Call call) {
    typename T::raw_type *raw = nullptr;
    const ::teeny_status status = call(&raw);
    if (status != TEENY_OK) {
        return failed(status);
    }
    return T(raw);
}

inline std::string_view view(const ::teeny_text &text) noexcept { return {text.data, text.len}; }

/// A path for C; nothing if it has a zero byte inside, which would hide the rest of it.
inline result<std::string> c_path(std::string_view path) {
    if (path.find('\0') != std::string_view::npos) {
        return failure{TEENY_INVALID_ARGUMENT, "the path contains a zero byte"};
    }
    return std::string(path);
}

/// What a function that asks first for the length with capacity 0 gives.
template <class Buffer, class F>
result<Buffer> filled(F call) {
    Buffer buffer;
    std::size_t len = 0;
    ::teeny_status status = call(nullptr, 0, &len);
    if (status == TEENY_OK && len > 0) {
        buffer.resize(len);
        status = call(buffer.data(), buffer.size(), &len);
    }
    if (status != TEENY_OK) {
        return failed(status);
    }
    buffer.resize(len);
    return buffer;
}

/// Calls a callback; whether it wants to go on.
template <class F, class... Args>
bool goes_on(F &callback, Args... args) {
    using answer = std::invoke_result_t<F &, Args...>;
    if constexpr (std::is_void_v<answer>) {
        callback(args...);
        return true;
    } else {
        static_assert(std::is_same_v<answer, bool>,
                      "a callback returns void, or bool: true to go on, false to stop");
        return callback(args...);
    }
}

/// Stands between C and a callback, whose exceptions it keeps until C has returned.
template <class F>
class guard {
  public:
    explicit guard(F &callback) noexcept : callback_(callback) {}

    /// What C is to return: 0 to go on.
    template <class... Args>
    std::int32_t call(Args... args) noexcept {
#if TEENY_HPP_THROWS
        try {
            stopped_ = !goes_on(callback_, args...);
        } catch (...) {
            thrown_ = std::current_exception();
            stopped_ = true;
        }
#else
        stopped_ = !goes_on(callback_, args...);
#endif
        return stopped_ ? 1 : 0;
    }

    /// Throws what the callback has thrown.
    void rethrow() const {
#if TEENY_HPP_THROWS
        if (thrown_) {
            std::rethrow_exception(thrown_);
        }
#endif
    }

    bool stopped() const noexcept { return stopped_; }

  private:
    F &callback_;
    bool stopped_ = false;
#if TEENY_HPP_THROWS
    std::exception_ptr thrown_;
#endif
};

/// Generates with `call(callback, user_data)`. That a callback asked to stop is no failure.
template <class F, class Call>
result<void> generated(F &callback, Call call) {
    guard<F> guarded(callback);
    const ::teeny_status status = call(
        [](void *user_data, const char *text, std::size_t len) -> std::int32_t {
            return static_cast<guard<F> *>(user_data)->call(std::string_view(text, len));
        },
        &guarded);
    result<void> done = checked(status);
    guarded.rethrow();
    return status == TEENY_CANCELLED && guarded.stopped() ? result<void>() : std::move(done);
}

/// The same for those who want all the text at once, with `generate(callback)`.
template <class Generate>
result<std::string> collected(Generate generate) {
    std::string text;
    result<void> done = generate([&text](std::string_view piece) { text += piece; });
    if (!done) {
        return done.error();
    }
    return text;
}

/// Owns an object of the library.
template <class Raw, void (*Free)(Raw *)>
class handle {
  public:
    /// The type behind the handle.
    using raw_type = Raw;

    /// An empty one.
    handle() noexcept = default;
    /// Takes over an object that C functions have made.
    explicit handle(Raw *raw) noexcept : raw_(raw) {}
    handle(handle &&other) noexcept : raw_(other.release()) {}
    handle &operator=(handle &&other) noexcept {
        handle old(std::move(other));
        std::swap(raw_, old.raw_);
        return *this;
    }
    ~handle() {
        if (raw_ != nullptr) {
            Free(raw_);
        }
    }

    /// For C functions; it goes on belonging to this object.
    Raw *get() const noexcept { return raw_; }
    /// For C functions; the caller frees it.
    Raw *release() noexcept { return std::exchange(raw_, nullptr); }
    /// Whether it is not empty.
    explicit operator bool() const noexcept { return raw_ != nullptr; }

  private:
    Raw *raw_ = nullptr;
};

template <class F, class... Args>
using if_callable = std::enable_if_t<std::is_invocable_v<F &, Args...>, int>;

/// Whether a callable may be none: a pointer, or a std::function.
template <class F>
inline constexpr bool may_be_null = std::is_pointer_v<F>;
template <class Signature>
inline constexpr bool may_be_null<std::function<Signature>> = true;

}  // namespace detail

/// Any callable that is told how much of a model is loaded, from 0 to 1; false stops.
class progress_callback {
  public:
    /// Nobody is told.
    progress_callback() = default;
    /// Nobody is told.
    progress_callback(std::nullptr_t) noexcept {}
    /// `callback` is told, unless it is a null pointer or an empty std::function.
    template <class F, detail::if_callable<F, float> = 0>
    progress_callback(F callback) {
        if constexpr (detail::may_be_null<F>) {
            if (callback == nullptr) {
                return;
            }
        }
        call_ = [callback = std::move(callback)](float done) mutable {
            return detail::goes_on(callback, done);
        };
    }

    /// Whether anybody is told.
    explicit operator bool() const noexcept { return static_cast<bool>(call_); }
    /// Tells.
    bool operator()(float done) const { return call_(done); }

  private:
    std::function<bool(float)> call_;
};

/// How to load a model.
struct model_options {
    /// "cpu", which is what empty stands for, "cuda", "cuda:N" or "auto".
    std::string device = {};
    /// Is told how much is loaded, and may stop it.
    progress_callback progress = {};
    /// A shorter context than the model's; 0 keeps the model's.
    std::size_t max_seq_len = 0;
    /// Threads that work on one call on the CPU, at most 256; 0 chooses.
    std::uint32_t threads = 0;
    /// What the weights are converted to.
    ::teeny_dtype dtype = TEENY_DTYPE_AS_STORED;
    /// Whether a file is mapped, or read into memory.
    bool map = true;
    /// How sessions store keys and values on the CPU.
    ::teeny_kv_dtype kv_dtype = TEENY_KV_F32;
    /// Whether the CPU's bf16 instructions may be used: faster, other last digits.
    bool fast = false;
};

/// How a session begins.
struct session_options {
    /// Tokens to make room for at once.
    std::size_t reserve = 0;
    /// What happens to a token for which the context has no room.
    ::teeny_overflow overflow = TEENY_OVERFLOW_SLIDE;
};

/// The usual chain: penalties, top-k, top-p, min-p, temperature.
struct sampler_options {
    /// The same seed gives the same text.
    std::uint64_t seed = 0;
    /// Draw from this many most likely tokens only; 0 is off.
    std::size_t top_k = 40;
    /// How many of the newest tokens the penalties look at.
    std::size_t penalty_last_n = 64;
    /// Divides the logits; 0 always takes the most likely token.
    float temperature = 0.8F;
    /// Draw from the most likely tokens that together reach this probability; 1 is off.
    float top_p = 0.95F;
    /// Draw only tokens of at least this share of the most likely one's probability; 0 is off.
    float min_p = 0.05F;
    /// Divides positive logits of recent tokens and multiplies negative ones; 1 is off.
    float repeat_penalty = 1.0F;
    /// Subtracted for each time that a token is among the recent ones; 0 is off.
    float frequency_penalty = 0.0F;
    /// Subtracted once for any recent token; 0 is off.
    float presence_penalty = 0.0F;
};

/// When to end and what to hand out.
struct generate_options {
    /// Most tokens to generate; SIZE_MAX for no limit.
    std::size_t max_tokens = 256;
    /// Texts that end generating; the one found is not handed out. Copied by the call.
    std::vector<std::string_view> stop = {};
    /// Whether the bytes of tokens are handed out as they are, or whole characters.
    bool raw_bytes = false;
    /// Whether generating goes on behind a token that ends a text.
    bool ignore_end = false;
};

namespace detail {

inline ::teeny_model_options c_options(const model_options &options,
                                       guard<const progress_callback> &progress) noexcept {
    ::teeny_model_options c = {};
    c.size = sizeof c;
    c.device = options.device.empty() ? nullptr : options.device.c_str();
    if (options.progress) {
        c.progress = [](void *user_data, float done) -> std::int32_t {
            return static_cast<guard<const progress_callback> *>(user_data)->call(done);
        };
        c.progress_user_data = &progress;
    }
    c.max_seq_len = options.max_seq_len;
    c.threads = options.threads;
    c.dtype = options.dtype;
    c.map = options.map ? 1 : 0;
    c.kv_dtype = options.kv_dtype;
    c.fast = options.fast ? 1 : 0;
    return c;
}

inline ::teeny_session_options c_options(const session_options &options) noexcept {
    ::teeny_session_options c = {};
    c.size = sizeof c;
    c.reserve = options.reserve;
    c.overflow = options.overflow;
    return c;
}

inline ::teeny_sampler_options c_options(const sampler_options &options) noexcept {
    ::teeny_sampler_options c = {};
    c.size = sizeof c;
    c.seed = options.seed;
    c.top_k = options.top_k;
    c.penalty_last_n = options.penalty_last_n;
    c.temperature = options.temperature;
    c.top_p = options.top_p;
    c.min_p = options.min_p;
    c.repeat_penalty = options.repeat_penalty;
    c.frequency_penalty = options.frequency_penalty;
    c.presence_penalty = options.presence_penalty;
    return c;
}

/// `stop` is room for the stop texts.
inline ::teeny_generate_options c_options(const generate_options &options,
                                          std::vector<::teeny_text> &stop) {
    for (std::string_view text : options.stop) {
        stop.push_back({text.data(), text.size()});
    }
    ::teeny_generate_options c = {};
    c.size = sizeof c;
    c.max_tokens = options.max_tokens;
    c.stop = stop.data();
    c.n_stop = stop.size();
    c.raw_bytes = options.raw_bytes ? 1 : 0;
    c.ignore_end = options.ignore_end ? 1 : 0;
    return c;
}

}  // namespace detail

/// Draws tokens: a chain of stages, and a draw from what they leave.
class sampler : public detail::handle<::teeny_sampler, ::teeny_sampler_free> {
  public:
    using handle::handle;

    /// The usual chain.
    static result<sampler> try_make(const sampler_options &options = {}) {
        const ::teeny_sampler_options c = detail::c_options(options);
        return detail::made<sampler>(
            [&](::teeny_sampler **out) { return ::teeny_sampler_new(&c, out); });
    }
    /// A chain without any stage yet.
    static result<sampler> try_chain(std::uint64_t seed = 0) {
        return detail::made<sampler>(
            [&](::teeny_sampler **out) { return ::teeny_sampler_new_chain(seed, out); });
    }
    /// Always takes the most likely token.
    static result<sampler> try_greedy() {
        return detail::made<sampler>(
            &::teeny_sampler_new_greedy);
    }
    /// A second sampler with the same chain in the same state.
    result<sampler> try_clone() const {
        return detail::made<sampler>(
            [&](::teeny_sampler **out) { return ::teeny_sampler_clone(get(), out); });
    }
    /// Adds a stage that adds to the logits of some tokens.
    result<void> try_add_logit_bias(span<const logit_bias> biases) {
        return detail::checked(::teeny_sampler_add_logit_bias(get(), biases.data(), biases.size()));
    }
    /// Adds a stage that makes the `last_n` newest tokens less likely.
    result<void> try_add_penalties(std::size_t last_n, float repeat, float frequency = 0.0F,
                                   float presence = 0.0F) {
        return detail::checked(
            ::teeny_sampler_add_penalties(get(), last_n, repeat, frequency, presence));
    }
    /// Adds a stage that keeps the `k` most likely tokens.
    result<void> try_add_top_k(std::size_t k) {
        return detail::checked(::teeny_sampler_add_top_k(get(), k));
    }
    /// Adds a stage that keeps the most likely tokens that together reach `p`.
    result<void> try_add_top_p(float p) {
        return detail::checked(::teeny_sampler_add_top_p(get(), p));
    }
    /// Adds a stage that keeps tokens of at least the share `p` of the largest probability.
    result<void> try_add_min_p(float p) {
        return detail::checked(::teeny_sampler_add_min_p(get(), p));
    }
    /// Adds a stage that divides the logits.
    result<void> try_add_temperature(float temperature) {
        return detail::checked(::teeny_sampler_add_temperature(get(), temperature));
    }
    /// The chain in words.
    result<std::string> try_describe() const {
        return detail::filled<std::string>(
            [this](char *text, std::size_t capacity, std::size_t *len) {
                return ::teeny_sampler_describe(get(), text, capacity, len);
            });
    }
    /// Draws a token from logits of any origin.
    result<std::uint32_t> try_sample(span<const float> logits) {
        std::uint32_t token = 0;
        return detail::checked(
            ::teeny_sampler_sample(get(), logits.data(), logits.size(), &token), token);
    }
    /// Tells it of a token that it did not draw.
    result<void> try_accept(std::uint32_t token) {
        return detail::checked(::teeny_sampler_accept(get(), token));
    }
    /// Begins anew.
    result<void> try_reset() { return detail::checked(::teeny_sampler_reset(get())); }

#if TEENY_HPP_THROWS
    /// The usual chain.
    static sampler make(const sampler_options &options = {}) { return try_make(options).value(); }
    /// A chain without any stage yet: `sampler::chain(7).add_top_k(40).add_temperature(0.8F)`.
    static sampler chain(std::uint64_t seed = 0) { return try_chain(seed).value(); }
    /// Always takes the most likely token.
    static sampler greedy() { return try_greedy().value(); }
    /// A second sampler with the same chain in the same state.
    sampler clone() const { return try_clone().value(); }
    /// Adds a stage that adds to the logits of some tokens.
    sampler &add_logit_bias(span<const logit_bias> biases) & {
        return try_add_logit_bias(biases).value(), *this;
    }
    /// The same at the end of a chain of calls.
    sampler add_logit_bias(span<const logit_bias> biases) && {
        return std::move(add_logit_bias(biases));
    }
    /// Adds a stage that makes the `last_n` newest tokens less likely.
    sampler &add_penalties(std::size_t last_n, float repeat, float frequency = 0.0F,
                           float presence = 0.0F) & {
        return try_add_penalties(last_n, repeat, frequency, presence).value(), *this;
    }
    /// The same at the end of a chain of calls.
    sampler add_penalties(std::size_t last_n, float repeat, float frequency = 0.0F,
                          float presence = 0.0F) && {
        return std::move(add_penalties(last_n, repeat, frequency, presence));
    }
    /// Adds a stage that keeps the `k` most likely tokens.
    sampler &add_top_k(std::size_t k) & { return try_add_top_k(k).value(), *this; }
    /// The same at the end of a chain of calls.
    sampler add_top_k(std::size_t k) && { return std::move(add_top_k(k)); }
    /// Adds a stage that keeps the most likely tokens that together reach `p`.
    sampler &add_top_p(float p) & { return try_add_top_p(p).value(), *this; }
    /// The same at the end of a chain of calls.
    sampler add_top_p(float p) && { return std::move(add_top_p(p)); }
    /// Adds a stage that keeps tokens of at least the share `p` of the largest probability.
    sampler &add_min_p(float p) & { return try_add_min_p(p).value(), *this; }
    /// The same at the end of a chain of calls.
    sampler add_min_p(float p) && { return std::move(add_min_p(p)); }
    /// Adds a stage that divides the logits.
    sampler &add_temperature(float t) & { return try_add_temperature(t).value(), *this; }
    /// The same at the end of a chain of calls.
    sampler add_temperature(float t) && { return std::move(add_temperature(t)); }
    /// The chain in words.
    std::string describe() const { return try_describe().value(); }
    /// Draws a token from logits of any origin.
    std::uint32_t sample(span<const float> logits) { return try_sample(logits).value(); }
    /// Tells it of a token that it did not draw.
    void accept(std::uint32_t token) { try_accept(token).value(); }
    /// Begins anew.
    void reset() { try_reset().value(); }
#endif
};

/// Text that is being generated, for a `for` loop or to be asked for.
///
/// If one that `session::stream` made fails in a loop, the loop throws. With one that
/// `session::try_stream` made, or that was made in C, the loop ends, and `failure` says whether it
/// failed. A loop that was left may be followed by another one, which goes on with the next piece.
class stream : public detail::handle<::teeny_stream, ::teeny_stream_free> {
  public:
    using handle::handle;

    /// The end of the text.
    struct sentinel {};

    /// Where a loop is.
    class iterator {
      public:
        using iterator_category = std::input_iterator_tag;
        using value_type = std::string_view;
        using difference_type = std::ptrdiff_t;
        using pointer = const std::string_view *;
        using reference = std::string_view;

        /// The end.
        iterator() noexcept = default;
        /// The piece, which lives until the next one is made.
        std::string_view operator*() const noexcept { return stream_->piece_; }
        /// Members of the piece.
        const std::string_view *operator->() const noexcept { return &stream_->piece_; }
        /// Generates the next piece.
        iterator &operator++() {
            stream_->advance();
            return *this;
        }
        /// Generates the next piece.
        void operator++(int) { stream_->advance(); }
        friend bool operator==(const iterator &i, sentinel) noexcept { return i.at_end(); }
        friend bool operator==(sentinel, const iterator &i) noexcept { return i.at_end(); }
        friend bool operator!=(const iterator &i, sentinel) noexcept { return !i.at_end(); }
        friend bool operator!=(sentinel, const iterator &i) noexcept { return !i.at_end(); }

      private:
        friend stream;
        explicit iterator(stream *of) noexcept : stream_(of) {}
        bool at_end() const noexcept { return stream_ == nullptr || stream_->piece_.empty(); }
        stream *stream_ = nullptr;
    };

    /// Generates the first piece, or the next one.
    iterator begin() {
        advance();
        return iterator(this);
    }
    /// The end of the text.
    sentinel end() const noexcept { return {}; }

    /// Generates the next piece; it is empty at the end, and lives until the next one is made.
    result<std::string_view> try_next() {
        ::teeny_text text = {};
        const ::teeny_status status = ::teeny_stream_next(get(), &text);
        if (status != TEENY_OK) {
            return detail::failed(status);
        }
        return detail::view(text);
    }
    /// Why a loop that does not throw has ended; its status is TEENY_OK if nothing failed. A piece
    /// that comes after a failure clears it.
    const teeny::failure &failure() const noexcept { return failure_; }
    /// Why the text has ended; TEENY_END_NONE while it goes on, and for an empty handle.
    ::teeny_end_reason end_reason() const noexcept {
        std::int32_t reason = TEENY_END_NONE;
        ::teeny_stream_end_reason(get(), &reason);
        return static_cast<::teeny_end_reason>(reason);
    }

#if TEENY_HPP_THROWS
    /// Generates the next piece; it is empty at the end, and lives until the next one is made.
    std::string_view next() { return try_next().value(); }
#endif

  private:
    friend class session;

    void advance() {
        piece_ = {};
        result<std::string_view> piece = try_next();
        if (piece) {
            piece_ = *piece;
            if (!piece_.empty()) {
                failure_ = {};  // It was not the end: somebody else was using the session.
            }
            return;
        }
#if TEENY_HPP_THROWS
        if (throws_) {
            throw teeny::error(piece.error());
        }
#endif
        failure_ = piece.error();
    }

    std::string_view piece_;
    teeny::failure failure_;
    [[maybe_unused]] bool throws_ = false;
};

/// How likely each of some tokens was, and what else was.
struct token_scores {
    /// The natural logarithm of each token's probability; NaN for one that nothing precedes.
    std::vector<float> log_probs = {};
    /// Columns of the next two.
    std::size_t top_n = 0;
    /// (tokens, top_n): the likeliest tokens in the place of each, most likely first.
    std::vector<std::uint32_t> top_tokens = {};
    /// (tokens, top_n): their logarithms.
    std::vector<float> top_log_probs = {};
};

/// One sequence of tokens that a model has seen.
///
/// `generate` and `stream` feed a prompt, which may be empty, and generate text after it, with a
/// sampler, or without one with a new one that has the defaults. That a callback stops by returning
/// false is no failure.
class session : public detail::handle<::teeny_session, ::teeny_session_free> {
  public:
    using handle::handle;

    /// Feeds tokens.
    result<void> try_feed(span<const std::uint32_t> tokens) {
        return detail::checked(::teeny_session_feed(get(), tokens.data(), tokens.size()));
    }
    /// Feeds one token.
    result<void> try_decode(std::uint32_t token) {
        return detail::checked(::teeny_session_decode(get(), token));
    }
    /// The logits for the token that follows what was fed: until the next call that feeds.
    result<span<const float>> try_logits() const {
        const float *logits = nullptr;
        std::size_t len = 0;
        const ::teeny_status status = ::teeny_session_logits(get(), &logits, &len);
        span<const float> borrowed(logits, len);
        return detail::checked(status, borrowed);
    }
    /// The last token's hidden state, an embedding of the text: until the next call that feeds.
    result<span<const float>> try_hidden() const {
        const float *hidden = nullptr;
        std::size_t len = 0;
        const ::teeny_status status = ::teeny_session_hidden(get(), &hidden, &len);
        span<const float> borrowed(hidden, len);
        return detail::checked(status, borrowed);
    }
    /// Draws the next token, without feeding it.
    result<std::uint32_t> try_sample(sampler &with) {
        std::uint32_t token = 0;
        const ::teeny_status status = ::teeny_session_sample(get(), with.get(), &token);
        return detail::checked(status, token);
    }
    /// Number of tokens fed since the start.
    std::size_t position() const noexcept { return ::teeny_session_position(get()); }
    /// Goes back to the first `position` tokens.
    result<void> try_truncate(std::size_t position) {
        return detail::checked(::teeny_session_truncate(get(), position));
    }
    /// A second session at the same point, which shares what was computed.
    result<session> try_fork() const {
        return detail::made<session>(
            [&](::teeny_session **out) { return ::teeny_session_fork(get(), out); });
    }
    /// Forgets all tokens.
    result<void> try_reset() { return detail::checked(::teeny_session_reset(get())); }
    /// Asks, from any thread, that the running call or the next one end with TEENY_CANCELLED.
    void cancel(bool on = true) const noexcept { ::teeny_session_cancel(get(), on ? 1 : 0); }
    /// What it has done, how long it took, and what memory it holds.
    result<session_stats> try_stats() const {
        session_stats stats = {};
        const ::teeny_status status = ::teeny_session_get_stats(get(), &stats, sizeof stats);
        return detail::checked(status, stats);
    }
    /// The session as bytes.
    result<std::vector<unsigned char>> try_save() const {
        return detail::filled<std::vector<unsigned char>>(
            [this](void *data, std::size_t capacity, std::size_t *len) {
                return ::teeny_session_save(get(), data, capacity, len);
            });
    }
    /// Writes the session to a file.
    result<void> try_save_file(std::string_view path) const {
        const result<std::string> c_path = detail::c_path(path);
        return c_path ? detail::checked(::teeny_session_save_file(get(), c_path->c_str()))
                      : c_path.error();
    }
    /// Becomes the session that was saved.
    result<void> try_restore(span<const unsigned char> saved) {
        return detail::checked(::teeny_session_restore(get(), saved.data(), saved.size()));
    }
    /// Becomes the session that was written to a file.
    result<void> try_restore_file(std::string_view path) {
        const result<std::string> c_path = detail::c_path(path);
        return c_path ? detail::checked(::teeny_session_restore_file(get(), c_path->c_str()))
                      : c_path.error();
    }
    /// Feeds tokens and says how likely each was, with the `top_n` likeliest in its place.
    result<token_scores> try_score(span<const std::uint32_t> tokens, std::size_t top_n = 0) {
        if (tokens.empty()) {
            return try_feed(tokens).error();
        }
        token_scores scores;
        scores.log_probs.resize(tokens.size());
        scores.top_n = top_n;
        // A product that overflows could not be allocated either.
        const std::size_t most = scores.top_tokens.max_size();
        if (top_n > 0 && tokens.size() > most / top_n) {
            return failure{TEENY_OUT_OF_MEMORY, "top_n is too large"};
        }
        scores.top_tokens.resize(tokens.size() * top_n);
        scores.top_log_probs.resize(tokens.size() * top_n);
        const ::teeny_status status = ::teeny_session_score(
            get(), tokens.data(), tokens.size(), scores.log_probs.data(), top_n,
            scores.top_tokens.data(), scores.top_log_probs.data());
        return detail::checked(status, scores);
    }

    /// Hands each piece of the text to `callback`.
    template <class F, detail::if_callable<F, std::string_view> = 0>
    result<void> try_generate(std::string_view prompt, F &&callback,
                              const generate_options &options = {}) {
        return run(prompt, nullptr, callback, options);
    }
    /// Hands each piece of the text to `callback`.
    template <class F, detail::if_callable<F, std::string_view> = 0>
    result<void> try_generate(std::string_view prompt, sampler &with, F &&callback,
                              const generate_options &options = {}) {
        return run(prompt, &with, callback, options);
    }
    /// The whole text.
    result<std::string> try_generate(std::string_view prompt,
                                     const generate_options &options = {}) {
        return detail::collected(
            [&](auto callback) { return run(prompt, nullptr, callback, options); });
    }
    /// The whole text.
    result<std::string> try_generate(std::string_view prompt, sampler &with,
                                     const generate_options &options = {}) {
        return detail::collected(
            [&](auto callback) { return run(prompt, &with, callback, options); });
    }
    /// The text piece by piece.
    result<teeny::stream> try_stream(std::string_view prompt,
                                     const generate_options &options = {}) {
        return pulled(prompt, nullptr, options);
    }
    /// The text piece by piece.
    result<teeny::stream> try_stream(std::string_view prompt, sampler &with,
                                     const generate_options &options = {}) {
        return pulled(prompt, &with, options);
    }

#if TEENY_HPP_THROWS
    /// Feeds tokens.
    void feed(span<const std::uint32_t> tokens) { try_feed(tokens).value(); }
    /// Feeds one token.
    void decode(std::uint32_t token) { try_decode(token).value(); }
    /// The logits for the token that follows what was fed: until the next call that feeds.
    span<const float> logits() const { return try_logits().value(); }
    /// The last token's hidden state, an embedding of the text: until the next call that feeds.
    span<const float> hidden() const { return try_hidden().value(); }
    /// Draws the next token, without feeding it.
    std::uint32_t sample(sampler &with) { return try_sample(with).value(); }
    /// Goes back to the first `position` tokens.
    void truncate(std::size_t position) { try_truncate(position).value(); }
    /// A second session at the same point, which shares what was computed.
    session fork() const { return try_fork().value(); }
    /// Forgets all tokens.
    void reset() { try_reset().value(); }
    /// What it has done, how long it took, and what memory it holds.
    session_stats stats() const { return try_stats().value(); }
    /// The session as bytes.
    std::vector<unsigned char> save() const { return try_save().value(); }
    /// Writes the session to a file.
    void save_file(std::string_view path) const { try_save_file(path).value(); }
    /// Becomes the session that was saved.
    void restore(span<const unsigned char> saved) { try_restore(saved).value(); }
    /// Becomes the session that was written to a file.
    void restore_file(std::string_view path) { try_restore_file(path).value(); }
    /// Feeds tokens and says how likely each was, with the `top_n` likeliest in its place.
    token_scores score(span<const std::uint32_t> tokens, std::size_t top_n = 0) {
        return try_score(tokens, top_n).value();
    }
    /// Hands each piece of the text to `callback`.
    template <class F, detail::if_callable<F, std::string_view> = 0>
    void generate(std::string_view prompt, F &&callback, const generate_options &options = {}) {
        run(prompt, nullptr, callback, options).value();
    }
    /// Hands each piece of the text to `callback`.
    template <class F, detail::if_callable<F, std::string_view> = 0>
    void generate(std::string_view prompt, sampler &with, F &&callback,
                  const generate_options &options = {}) {
        run(prompt, &with, callback, options).value();
    }
    /// The whole text.
    std::string generate(std::string_view prompt, const generate_options &options = {}) {
        return try_generate(prompt, options).value();
    }
    /// The whole text.
    std::string generate(std::string_view prompt, sampler &with,
                         const generate_options &options = {}) {
        return try_generate(prompt, with, options).value();
    }
    /// The text piece by piece: `for (std::string_view piece : session.stream("ROMEO:"))`.
    teeny::stream stream(std::string_view prompt, const generate_options &options = {}) {
        return throwing_stream(try_stream(prompt, options).value());
    }
    /// The text piece by piece.
    teeny::stream stream(std::string_view prompt, sampler &with,
                         const generate_options &options = {}) {
        return throwing_stream(try_stream(prompt, with, options).value());
    }
#endif

  private:
    /// An empty sampler is a mistake, while C takes NULL for the defaults.
    static result<void> check(const sampler *with) {
        if (with != nullptr && !*with) {
            return failure{TEENY_NULL_POINTER, "the sampler is empty"};
        }
        return {};
    }

    template <class F>
    result<void> run(std::string_view prompt, sampler *with, F &callback,
                     const generate_options &options) {
        if (result<void> sound = check(with); !sound) {
            return sound;
        }
        std::vector<::teeny_text> stop;
        const ::teeny_generate_options c = detail::c_options(options, stop);
        ::teeny_sampler *raw = with != nullptr ? with->get() : nullptr;
        return detail::generated(callback, [&](::teeny_text_callback call, void *user_data) {
            return ::teeny_session_generate(get(), raw, prompt.data(), prompt.size(), &c, call,
                                            user_data);
        });
    }

    result<teeny::stream> pulled(std::string_view prompt, sampler *with,
                                 const generate_options &options) {
        if (result<void> sound = check(with); !sound) {
            return sound.error();
        }
        std::vector<::teeny_text> stop;
        const ::teeny_generate_options c = detail::c_options(options, stop);
        ::teeny_sampler *raw = with != nullptr ? with->get() : nullptr;
        return detail::made<teeny::stream>([&](::teeny_stream **out) {
            return ::teeny_stream_new(get(), raw, prompt.data(), prompt.size(), &c, out);
        });
    }

#if TEENY_HPP_THROWS
    static teeny::stream throwing_stream(teeny::stream made) {
        made.throws_ = true;
        return made;
    }
#endif
};

/// A loaded model. Nothing changes it.
class model : public detail::handle<::teeny_model, ::teeny_model_free> {
  public:
    using handle::handle;

    /// Loads a model file.
    static result<model> try_load(std::string_view path, const model_options &options = {}) {
        const result<std::string> c_path = detail::c_path(path);
        if (!c_path) {
            return c_path.error();
        }
        return loaded(options, [&](const ::teeny_model_options &c, ::teeny_model **out) {
            return ::teeny_model_load(c_path->c_str(), &c, out);
        });
    }
    /// Loads a model file's contents from memory that stays as it is as long as the model or a
    /// session of it lives, such as an array in the program.
    static result<model> try_load_static(span<const unsigned char> data,
                                         const model_options &options = {}) {
        return loaded(options, [&](const ::teeny_model_options &c, ::teeny_model **out) {
            return ::teeny_model_load_memory(data.data(), data.size(), nullptr, nullptr, &c, out);
        });
    }
    /// Loads a model file's contents from memory that belongs to `owner`, of which it keeps a copy
    /// as long as it or a session of it needs the memory. If it fails it keeps none.
    static result<model> try_load_memory(std::shared_ptr<const void> owner,
                                         span<const unsigned char> data,
                                         const model_options &options = {}) {
        auto kept = std::make_unique<std::shared_ptr<const void>>(std::move(owner));
        const ::teeny_release_callback release = [](void *user_data, const void *, std::size_t) {
            delete static_cast<std::shared_ptr<const void> *>(user_data);
        };
        return loaded(options, [&](const ::teeny_model_options &c, ::teeny_model **out) {
            const ::teeny_status status = ::teeny_model_load_memory(data.data(), data.size(),
                                                                    release, kept.get(), &c, out);
            if (status == TEENY_OK) {
                // `release` has it now, or has deleted it already.
                static_cast<void>(kept.release());
            }
            return status;
        });
    }
    /// Loads a model file's contents from a vector, which becomes the model's.
    static result<model> try_load_memory(std::vector<unsigned char> &&data,
                                         const model_options &options = {}) {
        auto owner = std::make_shared<const std::vector<unsigned char>>(std::move(data));
        const span<const unsigned char> bytes = *owner;
        return try_load_memory(std::move(owner), bytes, options);
    }
    /// An empty sequence.
    result<session> try_new_session(const session_options &options = {}) const {
        const ::teeny_session_options c = detail::c_options(options);
        return detail::made<session>(
            [&](::teeny_session **out) { return ::teeny_session_new(get(), &c, out); });
    }

    /// Number of tokens in the vocabulary.
    std::size_t vocab_size() const noexcept { return ::teeny_model_vocab_size(get()); }
    /// Number of tokens that it looks back on.
    std::size_t max_seq_len() const noexcept { return ::teeny_model_max_seq_len(get()); }
    /// How many numbers `session::hidden` gives.
    std::size_t n_embd() const noexcept { return ::teeny_model_n_embd(get()); }
    /// Number of parameters.
    std::size_t n_params() const noexcept { return ::teeny_model_n_params(get()); }
    /// Bytes of the weights.
    std::size_t memory_used() const noexcept { return ::teeny_model_memory_used(get()); }
    /// Number of entries of the metadata.
    std::size_t metadata_count() const noexcept { return ::teeny_model_metadata_count(get()); }
    /// Key and value of an entry of the metadata, in the order of the keys.
    result<std::pair<std::string_view, std::string_view>> try_metadata_at(std::size_t i) const {
        ::teeny_text key = {};
        ::teeny_text value = {};
        const ::teeny_status status = ::teeny_model_metadata_at(get(), i, &key, &value);
        if (status != TEENY_OK) {
            return detail::failed(status);
        }
        return std::pair(detail::view(key), detail::view(value));
    }
    /// The metadata's value for a key, if there is one.
    std::optional<std::string_view> find_metadata(std::string_view key) const noexcept {
        ::teeny_text value = {};
        if (::teeny_model_metadata_get(get(), key.data(), key.size(), &value) != TEENY_OK) {
            return std::nullopt;
        }
        return detail::view(value);
    }

    /// The tokens of UTF-8 text.
    result<std::vector<std::uint32_t>> try_encode(std::string_view text) const {
        // A character makes one token at most.
        std::vector<std::uint32_t> tokens(text.size());
        std::size_t len = 0;
        const ::teeny_status status = ::teeny_model_encode(get(), text.data(), text.size(),
                                                           tokens.data(), tokens.size(), &len);
        if (status != TEENY_OK) {
            return detail::failed(status);
        }
        tokens.resize(len);
        return tokens;
    }
    /// The bytes of tokens, which need not be whole characters.
    result<std::string> try_decode(span<const std::uint32_t> tokens) const {
        return detail::filled<std::string>(
            [&](char *text, std::size_t capacity, std::size_t *len) {
                return ::teeny_model_decode(get(), tokens.data(), tokens.size(), text, capacity,
                                            len);
            });
    }
    /// The bytes of one token.
    result<std::string_view> try_token_bytes(std::uint32_t token) const {
        ::teeny_text bytes = {};
        const ::teeny_status status = ::teeny_model_token_bytes(get(), token, &bytes);
        if (status != TEENY_OK) {
            return detail::failed(status);
        }
        return detail::view(bytes);
    }
    /// How likely it finds a text of at least two tokens.
    result<text_score> try_score_text(std::string_view text) const {
        text_score score = {};
        const ::teeny_status status =
            ::teeny_score_text(get(), text.data(), text.size(), &score, sizeof score);
        return detail::checked(status, score);
    }
    /// Continues a prompt in a sequence of its own and hands each piece of the text to `callback`.
    template <class F, detail::if_callable<F, std::string_view> = 0>
    result<void> try_generate(std::string_view prompt, F &&callback,
                              const sampler_options &sampling = {},
                              const generate_options &options = {}) const {
        const ::teeny_sampler_options c_sampling = detail::c_options(sampling);
        std::vector<::teeny_text> stop;
        const ::teeny_generate_options c = detail::c_options(options, stop);
        return detail::generated(callback, [&](::teeny_text_callback call, void *user_data) {
            return ::teeny_generate(get(), prompt.data(), prompt.size(), &c_sampling, &c, call,
                                    user_data);
        });
    }
    /// Continues a prompt in a sequence of its own: the whole text.
    result<std::string> try_generate(std::string_view prompt, const sampler_options &sampling = {},
                                     const generate_options &options = {}) const {
        return detail::collected(
            [&](auto callback) { return try_generate(prompt, callback, sampling, options); });
    }

#if TEENY_HPP_THROWS
    /// Loads a model file.
    static model load(std::string_view path, const model_options &options = {}) {
        return try_load(path, options).value();
    }
    /// Loads a model from memory that stays as it is as long as the model or a session of it lives.
    static model load_static(span<const unsigned char> data, const model_options &options = {}) {
        return try_load_static(data, options).value();
    }
    /// Loads a model from memory that belongs to `owner`, of which it keeps a copy.
    static model load_memory(std::shared_ptr<const void> owner, span<const unsigned char> data,
                             const model_options &options = {}) {
        return try_load_memory(std::move(owner), data, options).value();
    }
    /// Loads a model from a vector, which becomes the model's.
    static model load_memory(std::vector<unsigned char> &&data,
                             const model_options &options = {}) {
        return try_load_memory(std::move(data), options).value();
    }
    /// An empty sequence.
    session new_session(const session_options &options = {}) const {
        return try_new_session(options).value();
    }
    /// Key and value of an entry of the metadata, in the order of the keys.
    std::pair<std::string_view, std::string_view> metadata_at(std::size_t i) const {
        return try_metadata_at(i).value();
    }
    /// The tokens of UTF-8 text.
    std::vector<std::uint32_t> encode(std::string_view text) const {
        return try_encode(text).value();
    }
    /// The bytes of tokens, which need not be whole characters.
    std::string decode(span<const std::uint32_t> tokens) const {
        return try_decode(tokens).value();
    }
    /// The bytes of one token.
    std::string_view token_bytes(std::uint32_t token) const {
        return try_token_bytes(token).value();
    }
    /// How likely it finds a text of at least two tokens.
    text_score score_text(std::string_view text) const { return try_score_text(text).value(); }
    /// Continues a prompt in a sequence of its own and hands each piece of the text to `callback`.
    template <class F, detail::if_callable<F, std::string_view> = 0>
    void generate(std::string_view prompt, F &&callback, const sampler_options &sampling = {},
                  const generate_options &options = {}) const {
        try_generate(prompt, callback, sampling, options).value();
    }
    /// Continues a prompt in a sequence of its own: the whole text.
    std::string generate(std::string_view prompt, const sampler_options &sampling = {},
                         const generate_options &options = {}) const {
        return try_generate(prompt, sampling, options).value();
    }
#endif

  private:
    /// Loads with `call(options, out)`.
    template <class Call>
    static result<model> loaded(const model_options &options, Call call) {
        detail::guard<const progress_callback> progress(options.progress);
        const ::teeny_model_options c = detail::c_options(options, progress);
        result<model> model_or_failure =
            detail::made<model>([&](::teeny_model **out) { return call(c, out); });
        progress.rethrow();
        return model_or_failure;
    }
};

/// Version of the library, such as "0.1.0".
inline std::string_view version() noexcept { return ::teeny_version(); }
/// The library in one line for a report.
inline std::string_view build_info() noexcept { return ::teeny_build_info(); }
/// Name of a status, such as "TEENY_IO".
inline std::string_view status_name(::teeny_status status) noexcept {
    return ::teeny_status_name(status);
}
/// Whether the library has the interface that this header was written for.
inline bool abi_matches() noexcept { return ::teeny_abi_version() == TEENY_ABI_VERSION; }
/// Number of objects that are not freed.
inline std::size_t object_count() noexcept { return ::teeny_object_count(); }

namespace detail {

using log_function = std::function<void(::teeny_log_level, std::string_view)>;

/// The log callback, which calls on other threads may be using while it is replaced.
struct log_slot {
    std::mutex lock;
    std::shared_ptr<const log_function> function;

    std::shared_ptr<const log_function> get() {
        const std::lock_guard<std::mutex> locked(lock);
        return function;
    }
    std::shared_ptr<const log_function> swap(std::shared_ptr<const log_function> other) {
        const std::lock_guard<std::mutex> locked(lock);
        function.swap(other);
        return other;
    }
};

inline log_slot &log() {
    // Never destroyed: threads may log until the very end of the process.
    static log_slot &slot = *new log_slot;
    return slot;
}

inline void on_log(void *, std::int32_t level, const char *message, std::size_t len) noexcept {
#if TEENY_HPP_THROWS
    try {
#endif
        if (const std::shared_ptr<const log_function> function = log().get()) {
            (*function)(static_cast<::teeny_log_level>(level), std::string_view(message, len));
        }
#if TEENY_HPP_THROWS
    } catch (...) {  // Nobody is there to whom it would matter.
    }
#endif
}

}  // namespace detail

/// Hands log messages of `level` and below to `callback`, on any thread that uses teeny, for the
/// whole process. Its exceptions are swallowed.
template <class F, detail::if_callable<F, ::teeny_log_level, std::string_view> = 0>
result<void> try_set_log(::teeny_log_level level, F callback) {
    auto before =
        detail::log().swap(std::make_shared<const detail::log_function>(std::move(callback)));
    result<void> done = detail::checked(::teeny_set_log_callback(level, detail::on_log, nullptr));
    if (!done) {
        detail::log().swap(std::move(before));
    }
    return done;
}
/// Switches logging off, as it is at first.
inline void clear_log() noexcept {
    ::teeny_set_log_callback(TEENY_LOG_ERROR, nullptr, nullptr);
    detail::log().swap(nullptr);
}

#if TEENY_HPP_THROWS
/// Hands log messages of `level` and below to `callback`, as `try_set_log` does.
template <class F, detail::if_callable<F, ::teeny_log_level, std::string_view> = 0>
void set_log(::teeny_log_level level, F callback) {
    try_set_log(level, std::move(callback)).value();
}
#endif

}  // inline namespace
}  // namespace teeny

#undef TEENY_HPP_THROWS

#endif  // TEENY_HPP
