// A game's loop that never waits for the model: text is generated on a second thread, and each
// frame takes over what has come meanwhile.
//
//     background MODEL PROMPT [FRAMES]
//
// README.md says how to build it.
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <future>
#include <iostream>
#include <mutex>
#include <thread>

#include "teeny.hpp"

/// Reads a number that is the whole text.
static bool read(std::string_view text, std::size_t &number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() && end == text.data() + text.size();
}

/// Text on its way from one thread to another, which never waits for it.
class hand_over {
  public:
    /// Leaves a piece of text; false if nobody takes over text any more.
    bool put(std::string_view piece) {
        std::unique_lock<std::mutex> lock(mutex_);
        // A reader that falls behind slows the model down: nothing is lost or piles up.
        room_.wait(lock, [&] { return closed_ || text_.size() + piece.size() <= capacity; });
        if (!closed_) {
            text_ += piece;
        }
        return !closed_;
    }

    /// The text that is there.
    std::string take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        room_.notify_one();
        return std::exchange(text_, {});
    }

    /// Ends a `put` that waits, and all that follow.
    void close() {
        const std::lock_guard<std::mutex> lock(mutex_);
        closed_ = true;
        room_.notify_one();
    }

    /// Whether nobody will put or take anything any more.
    bool closed() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return closed_;
    }

  private:
    static constexpr std::size_t capacity = 1024;
    std::mutex mutex_;
    std::condition_variable room_;
    std::string text_;
    bool closed_ = false;
};

/// The main loop: 60 frames a second.
static void run(hand_over &text, std::size_t frames) {
    using clock = std::chrono::steady_clock;
    const auto period = std::chrono::duration_cast<clock::duration>(std::chrono::seconds(1)) / 60;
    std::size_t frame = 0;
    std::size_t late = 0;
    auto deadline = clock::now();

    for (; frame < frames && !text.closed(); frame++) {
        std::cout << text.take() << std::flush;
        // Here a game would move and draw its world.

        deadline += period;
        if (deadline < clock::now()) {
            late++;
            deadline = clock::now();  // begin anew, rather than hurry after the clock
        }
        std::this_thread::sleep_until(deadline);
    }
    std::cerr << frame << " frames, " << late << " of them late\n";
}

/// Ends generating, which may be computing, or waiting for room.
struct stop_at_end {
    teeny::session &session;
    hand_over &text;

    ~stop_at_end() {
        session.cancel();
        text.close();
    }
};

/// Runs the loop beside a generating thread, and stops that in the end.
static void run_beside(teeny::session &session, std::string_view prompt, std::size_t frames) {
    hand_over text;
    auto generated = std::async(std::launch::async, [&] {
        teeny::generate_options options;
        options.max_tokens = SIZE_MAX;
        // However this ends, the main loop is to hear of it.
        const std::unique_ptr<hand_over, void (*)(hand_over *)> closing(
            &text, [](hand_over *open) { open->close(); });
        const auto put = [&](std::string_view piece) { return text.put(piece); };
        session.generate(prompt, put, options);
    });
    {
        // However the loop ends: nothing else would end the other thread.
        const stop_at_end stop{session, text};
        run(text, frames);
    }
    generated.wait();
    std::cout << text.take() << '\n';
    try {
        generated.get();  // throws what the other thread has thrown
    } catch (const teeny::error &error) {
        if (error.status() != TEENY_CANCELLED) {
            throw;
        }
    }
    std::cerr << "cancelled after " << session.position() << " tokens\n";
}

int main(int argc, char **argv) {
    std::size_t frames = 120;

    if (argc < 3 || argc > 4 || (argc == 4 && !read(argv[3], frames))) {
        std::cerr << "usage: " << argv[0] << " MODEL PROMPT [FRAMES]\n";
        return 2;
    }
    try {
        const auto model = teeny::model::load(argv[1]);
        auto session = model.new_session();
        run_beside(session, argv[2], frames);
    } catch (const std::exception &error) {
        std::cerr << argv[0] << ": " << error.what() << '\n';
        return 1;
    }
    return std::cout.flush() ? 0 : 1;
}
