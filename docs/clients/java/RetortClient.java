import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * Asks a Retort service for click probabilities within an auction: one total timeout, no retry, and an answer of one's
 * own where the service has none. Safe for use by many threads; make one and keep it, it keeps connections open.
 *
 * <p>The standard library has no JSON: context and candidates are given as text, by whatever library you have.
 */
public final class RetortClient {
    /** Where scores come from. Everything but SERVICE is a fallback: every score is the client's default then. */
    public enum Source {
        SERVICE,
        /** No whole answer in time. */
        TIMEOUT,
        /** 429: asking again within this auction would make it worse. */
        OVERLOADED,
        /** Any other status: look at the "code" of the answer when you develop. */
        REFUSED,
        /** No connection, or it broke. */
        UNREACHABLE,
        /** An answer that does not fit the question. */
        INVALID
    }

    /** One click probability for each candidate, in their order, always; count the sources in your metrics. */
    public record Scores(double[] pctr, Source source) {}

    private static final String MEMBER = "\"pctr\":[";

    private final HttpClient http =
            HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build(); // 2 would ask for an upgrade first
    private final URI uri;
    private final double defaultPctr;

    /**
     * A client of a service, say {@code http://retort:8000}. {@code defaultPctr} is what you bid on without it:
     * yesterday's mean click rate, say.
     */
    public RetortClient(String url, double defaultPctr) {
        this.uri = URI.create(url + "/predict");
        this.defaultPctr = defaultPctr;
    }

    /**
     * Returns within the timeout, whatever happens. {@code unitId}, the user or device, is what keeps an experiment's
     * arm: never leave it empty. {@code context} is a JSON object, each of {@code candidates} too: field name, raw value.
     */
    public Scores score(String unitId, String context, List<String> candidates, Duration timeout)
            throws InterruptedException {
        // The service does not begin what it cannot finish by its deadline; the rest of the time is the network's.
        String body = "{\"unit_id\":" + quote(unitId) + ",\"context\":" + context + ",\"candidates\":["
                + String.join(",", candidates) + "],\"deadline_ms\":" + 0.8 * timeout.toNanos() / 1e6 + "}";
        HttpRequest request = HttpRequest.newBuilder(uri)
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build();
        CompletableFuture<HttpResponse<String>> asked =
                http.sendAsync(request, HttpResponse.BodyHandlers.ofString());
        try {
            // Not HttpRequest.timeout, which ends with the headers: connect, send, wait and read, all together.
            HttpResponse<String> response = asked.get(timeout.toNanos(), TimeUnit.NANOSECONDS);
            if (response.statusCode() == 200) {
                double[] pctr = pctrIn(response.body());
                return pctr.length == candidates.size() ? new Scores(pctr, Source.SERVICE)
                        : fallback(candidates, Source.INVALID);
            }
            return fallback(candidates, response.statusCode() == 429 ? Source.OVERLOADED : Source.REFUSED);
        } catch (TimeoutException error) {
            asked.cancel(true); // closes the connection: a late answer is nobody's
            return fallback(candidates, Source.TIMEOUT);
        } catch (ExecutionException error) {
            return fallback(candidates, error.getCause() instanceof IOException ? Source.UNREACHABLE : Source.INVALID);
        }
    }

    private Scores fallback(List<String> candidates, Source source) {
        double[] pctr = new double[candidates.size()];
        Arrays.fill(pctr, defaultPctr);
        return new Scores(pctr, source);
    }

    /** The numbers of the one member that is read; nothing else in an answer can look like it, quotes being escaped. */
    private static double[] pctrIn(String answer) {
        int start = answer.indexOf(MEMBER);
        int end = answer.indexOf(']', start);
        if (start < 0 || end < 0) {
            return new double[0];
        }
        List<Double> pctr = new ArrayList<>();
        try {
            for (String number : answer.substring(start + MEMBER.length(), end).split(",")) {
                pctr.add(Double.valueOf(number));
            }
        } catch (NumberFormatException error) {
            return new double[0];
        }
        return pctr.stream().mapToDouble(Double::doubleValue).toArray();
    }

    private static String quote(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char letter : text.toCharArray()) {
            if (letter == '"' || letter == '\\') {
                quoted.append('\\').append(letter);
            } else if (letter < ' ') {
                quoted.append(String.format("\\u%04x", (int) letter));
            } else {
                quoted.append(letter);
            }
        }
        return quoted.append('"').toString();
    }
}
