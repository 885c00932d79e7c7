// Asks for each line of stdin, "unit TAB timeout in ms TAB context TAB candidate TAB candidate ...", all but the first
// two in JSON, and prints where the scores came from and the scores:
//   g++ -std=c++17 -O2 example.cpp -o example && ./example 127.0.0.1 8000 0.02
#include <iostream>

#include "retort_client.hpp"

int main(int, char** arguments) {
    static const char* sources[] = {"service", "timeout", "overloaded", "refused", "unreachable", "invalid"};
    retort::Client client(arguments[1], arguments[2], std::atof(arguments[3]));
    std::cout.precision(9);
    for (std::string line; std::getline(std::cin, line);) {
        std::vector<std::string> parts;
        for (size_t start = 0, tab; start != std::string::npos; start = tab == std::string::npos ? tab : tab + 1) {
            tab = line.find('\t', start);
            parts.push_back(line.substr(start, tab - start));
        }
        std::chrono::milliseconds timeout(std::atoi(parts[1].c_str()));
        retort::Scores scores = client.score(parts[0], parts[2], {parts.begin() + 3, parts.end()}, timeout);
        std::cout << sources[static_cast<int>(scores.source)];
        for (double pctr : scores.pctr) std::cout << ' ' << pctr;
        std::cout << std::endl;
    }
}
