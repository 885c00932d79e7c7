import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.Locale;

/**
 * Asks for each line of stdin, "unit TAB timeout in ms TAB context TAB candidate TAB candidate …", all but the first
 * two in JSON, and prints where the scores came from and the scores:
 *
 * <pre>javac *.java &amp;&amp; java Example http://127.0.0.1:8000 0.02</pre>
 */
public final class Example {
    public static void main(String[] arguments) throws Exception {
        RetortClient client = new RetortClient(arguments[0], Double.parseDouble(arguments[1]));
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] parts = line.split("\t");
            Duration timeout = Duration.ofMillis(Long.parseLong(parts[1]));
            RetortClient.Scores scores =
                    client.score(parts[0], parts[2], Arrays.asList(parts).subList(3, parts.length), timeout);
            out.print(scores.source().name().toLowerCase(Locale.ROOT));
            for (double pctr : scores.pctr()) {
                out.print(" " + pctr);
            }
            out.println();
        }
    }
}
