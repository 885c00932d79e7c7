// Asks a Retort service for click probabilities within an auction: one total timeout, no retry, and an answer of one's
// own where the service has none. C++17 and POSIX sockets, nothing else. One client a thread; keep it, it keeps its
// connection open. JSON goes in as text, made by whatever library you have.
#pragma once

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace retort {

// Where scores come from. Everything but service is a fallback: every score is the client's default then.
enum class Source {
    service,
    timeout,      // no whole answer in time
    overloaded,   // 429: asking again within this auction would make it worse
    refused,      // any other status: look at the "code" of the answer when you develop
    unreachable,  // no connection, or it broke
    invalid       // an answer that does not fit the question
};

struct Scores {
    std::vector<double> pctr;  // one for each candidate, in their order, always
    Source source;             // count them in your metrics
};

class Client {
public:
    // default_pctr is what you bid on without the service: yesterday's mean click rate, say. The name is resolved
    // here, once, because that may take seconds: std::runtime_error where it cannot be.
    Client(const std::string& host, const std::string& port, double default_pctr)
        : host_(host), default_pctr_(default_pctr) {
        addrinfo hints{};
        hints.ai_socktype = SOCK_STREAM;
        addrinfo* found = nullptr;
        if (int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found)) {
            throw std::runtime_error(host + ": " + gai_strerror(error));
        }
        family_ = found->ai_family;
        address_size_ = found->ai_addrlen;
        std::memcpy(&address_, found->ai_addr, found->ai_addrlen);
        freeaddrinfo(found);
    }
    ~Client() { close(); }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    // Returns within the timeout, whatever happens. unit_id, the user or device, is what keeps an experiment's arm:
    // never leave it empty. context is a JSON object, each of candidates too: field name, raw value.
    Scores score(const std::string& unit_id, const std::string& context, const std::vector<std::string>& candidates,
                 std::chrono::milliseconds timeout) {
        due_ = std::chrono::steady_clock::now() + timeout;
        std::vector<double> pctr;
        Source source = ask(body_of(unit_id, context, candidates, timeout), pctr);
        if (source == Source::service && pctr.size() != candidates.size()) source = Source::invalid;
        if (source != Source::service) pctr.assign(candidates.size(), default_pctr_);
        return {pctr, source};
    }

private:
    enum class Io { done, late, broken };

    Source ask(const std::string& body, std::vector<double>& pctr) {
        std::string request = "POST /predict HTTP/1.1\r\nHost: " + host_ +
                              "\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
                              "\r\n\r\n" + body;
        std::string answer;
        bool was_open = socket_ >= 0;
        Io io = exchange(request, answer);
        // The service closes connections that were idle for long. One that closed before it answered anything has
        // scored nothing for us, so this is no second request.
        if (io == Io::broken && was_open && answer.empty()) io = exchange(request, answer);
        if (io == Io::late) return Source::timeout;
        if (io == Io::broken) return Source::unreachable;
        int status = std::atoi(answer.c_str() + 9);  // behind "HTTP/1.1 "
        if (status != 200) return status == 429 ? Source::overloaded : Source::refused;
        return read_pctr(answer, pctr) ? Source::service : Source::invalid;
    }

    // Sends and receives one whole answer; unless all is well the connection is closed, so that a late answer is
    // nobody's.
    Io exchange(const std::string& request, std::string& answer) {
        Io io = connect();
        if (io == Io::done) io = send(request);
        if (io == Io::done) io = receive(answer);
        if (io != Io::done || header(answer, "connection") == "close") close();
        return io;
    }

    Io connect() {
        if (socket_ >= 0) return Io::done;
        socket_ = ::socket(family_, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (socket_ < 0) return Io::broken;
        int on = 1;
        setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (::connect(socket_, reinterpret_cast<const sockaddr*>(&address_), address_size_) == 0) return Io::done;
        if (errno != EINPROGRESS) return Io::broken;
        if (Io io = wait(POLLOUT); io != Io::done) return io;
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(socket_, SOL_SOCKET, SO_ERROR, &error, &size);
        return error == 0 ? Io::done : Io::broken;
    }

    Io send(const std::string& text) {
        for (size_t sent = 0; sent < text.size();) {
            ssize_t count = ::send(socket_, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
            if (count >= 0) {
                sent += static_cast<size_t>(count);
            } else if (errno == EAGAIN) {
                if (Io io = wait(POLLOUT); io != Io::done) return io;
            } else if (errno != EINTR) {
                return Io::broken;
            }
        }
        return Io::done;
    }

    // The service always says how long an answer is.
    Io receive(std::string& answer) {
        size_t whole = std::string::npos;
        char part[1 << 14];
        while (answer.size() < whole) {
            ssize_t count = ::recv(socket_, part, sizeof part, 0);
            if (count > 0) {
                answer.append(part, static_cast<size_t>(count));
            } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
                return Io::broken;
            } else if (Io io = wait(POLLIN); io != Io::done) {
                return io;
            }
            size_t head = answer.find("\r\n\r\n");
            if (whole == std::string::npos && head != std::string::npos) {
                std::string length = header(answer, "content-length");
                if (length.empty()) return Io::broken;
                whole = head + 4 + std::strtoul(length.c_str(), nullptr, 10);
            }
        }
        return Io::done;
    }

    Io wait(short events) {
        auto left = std::chrono::duration_cast<std::chrono::milliseconds>(due_ - std::chrono::steady_clock::now());
        pollfd waiting{socket_, events, 0};
        return left.count() > 0 && ::poll(&waiting, 1, static_cast<int>(left.count())) != 0 ? Io::done : Io::late;
    }

    // The value of a header, "" where it is not there; `name` in lower case, as proxies may write it otherwise.
    static std::string header(const std::string& answer, const std::string& name) {
        std::string head = answer.substr(0, answer.find("\r\n\r\n") + 2);
        for (char& letter : head) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
        size_t at = head.find("\r\n" + name + ":");
        if (at == std::string::npos) return "";
        size_t value = head.find_first_not_of(" \t", at + name.size() + 3);
        return head.substr(value, head.find("\r\n", value) - value);
    }

    void close() {
        if (socket_ >= 0) ::close(socket_);
        socket_ = -1;
    }

    static std::string body_of(const std::string& unit_id, const std::string& context,
                               const std::vector<std::string>& candidates, std::chrono::milliseconds timeout) {
        std::string body = "{\"unit_id\":" + quoted(unit_id) + ",\"context\":" + context + ",\"candidates\":[";
        for (size_t i = 0; i < candidates.size(); ++i) body += (i ? "," : "") + candidates[i];
        // The service does not begin what it cannot finish by then; the rest of the time is the network's.
        return body + "],\"deadline_ms\":" + std::to_string(std::max<long long>(1, timeout.count() * 4 / 5)) + "}";
    }

    static std::string quoted(const std::string& text) {
        std::string quoted = "\"";
        for (char letter : text) {
            if (static_cast<unsigned char>(letter) < ' ') {
                char escape[8];
                std::snprintf(escape, sizeof escape, "\\u%04x", letter);
                quoted += escape;
                continue;
            }
            if (letter == '"' || letter == '\\') quoted += '\\';
            quoted += letter;
        }
        return quoted + "\"";
    }

    // The numbers of the one member that is read; nothing else in an answer can look like it, quotes being escaped.
    static bool read_pctr(const std::string& answer, std::vector<double>& pctr) {
        static const std::string member = "\"pctr\":[";
        size_t at = answer.find(member);
        if (at == std::string::npos) return false;
        const char* place = answer.data() + at + member.size();
        const char* end = answer.data() + answer.size();
        for (;;) {
            double number = 0;
            auto [stop, error] = std::from_chars(place, end, number);  // strtod would read by the program's locale
            if (error != std::errc() || stop == end) return false;
            pctr.push_back(number);
            if (*stop == ']') return true;
            if (*stop != ',') return false;
            place = stop + 1;
        }
    }

    std::string host_;
    double default_pctr_;
    sockaddr_storage address_{};
    socklen_t address_size_ = 0;
    int family_ = AF_UNSPEC;
    int socket_ = -1;
    std::chrono::steady_clock::time_point due_;
};

}  // namespace retort
