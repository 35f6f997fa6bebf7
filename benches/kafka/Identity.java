// The peer: Kafka Streams doing the same identity, exactly once. Started by `benches/kafka.rs`.
//
//   tests/env/kafka java benches/kafka/Identity.java BOOTSTRAP IN OUT RECORDS COMMIT_MS
//
// Prints `seconds cpu-seconds peak-MiB` of the time from its first record to its last commit: neither the start of the
// virtual machine nor the compiler's work before that count.
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;

public class Identity {
    public static void main(String[] args) throws Exception {
        String bootstrap = args[0], in = args[1], out = args[2], id = "streams-" + out;
        long records = Long.parseLong(args[3]);
        Properties config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, id);
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        config.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, args[4]);
        config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, "1");
        config.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.ByteArray().getClass());
        config.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.ByteArray().getClass());
        config.put("auto.offset.reset", "earliest");
        config.put(StreamsConfig.STATE_DIR_CONFIG, Files.createTempDirectory("streams").toString());
        AtomicLong began = new AtomicLong(), cpu = new AtomicLong();
        StreamsBuilder builder = new StreamsBuilder();
        builder.<byte[], byte[]>stream(in).mapValues(value -> {
            if (began.get() == 0) {
                cpu.set(cpu());
                began.set(System.nanoTime());
            }
            return value;
        }).to(out);
        try (KafkaStreams streams = new KafkaStreams(builder.build(), config);
                Admin admin = Admin.create(Map.of("bootstrap.servers", bootstrap))) {
            streams.start();
            long done = 0;
            while (done < records) {
                Thread.sleep(50);
                done = 0;
                for (var offset : admin.listConsumerGroupOffsets(id).partitionsToOffsetAndMetadata().get().values()) {
                    done += offset == null ? 0 : offset.offset();
                }
            }
            double seconds = (System.nanoTime() - began.get()) / 1e9, used = (cpu() - cpu.get()) / 1e9;
            String line = Files.readAllLines(Path.of("/proc/self/status")).stream()
                    .filter(l -> l.startsWith("VmHWM:")).findFirst().get();
            double peak = Long.parseLong(line.replaceAll("[^0-9]", "")) / 1024.0;
            System.out.printf("%.3f %.3f %.0f%n", seconds, used, peak);
            System.out.flush();
        }
        System.exit(0);
    }

    private static long cpu() {
        var bean = java.lang.management.ManagementFactory.getOperatingSystemMXBean();
        return ((com.sun.management.OperatingSystemMXBean) bean).getProcessCpuTime();
    }
}
