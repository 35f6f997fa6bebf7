// Reads manifests as Strimzi's own operator does, and says what it would not understand: a kind or version that it does not serve,
// a field that its model does not have, a field that the newest version wants, a value that is none of an enumeration's.
// Prints one line for each document that is good; ends with 1 if one is not.
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.dataformat.yaml.YAMLFactory;
import io.strimzi.api.kafka.model.common.UnknownPropertyPreserving;
import java.io.File;
import java.lang.reflect.Method;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

class Check {
    static final List<String> faults = new ArrayList<>();

    public static void main(String[] arguments) throws Exception {
        ObjectMapper yaml = new ObjectMapper(new YAMLFactory());
        Map<String, Class<?>> kinds = new HashMap<>();
        for (String name : List.of("kafka.Kafka", "nodepool.KafkaNodePool", "user.KafkaUser", "topic.KafkaTopic")) {
            Class<?> model = Class.forName("io.strimzi.api.kafka.model." + name);
            kinds.put(model.getSimpleName(), model);
        }
        var documents = yaml.readerFor(JsonNode.class).<JsonNode>readValues(new File(arguments[0]));
        int good = 0;
        while (documents.hasNext()) {
            JsonNode document = documents.next();
            String[] version = document.path("apiVersion").asText().split("/");
            if (!version[0].equals("kafka.strimzi.io")) continue;
            String kind = document.path("kind").asText();
            int before = faults.size();
            Class<?> model = kinds.get(kind);
            if (model == null) {
                faults.add("there is no kind " + kind);
                continue;
            }
            Object versions = model.getField("VERSIONS").get(null);
            if (!((List<?>) versions).contains(version[1])) {
                faults.add(kind + ": version " + version[1] + " is not served, " + versions + " are");
            }
            try {
                Object read = yaml.treeToValue(document, model);
                look(kind, read);
                compare(kind + ".spec", document.path("spec"), yaml.valueToTree(read).path("spec"));
            } catch (com.fasterxml.jackson.core.JsonProcessingException error) {
                faults.add(kind + ": " + error.getOriginalMessage());
            }
            if (faults.size() == before) {
                System.out.println("good: " + kind + " " + version[1] + " of " + versions);
                good++;
            }
        }
        faults.forEach(System.err::println);
        System.exit(faults.isEmpty() && good > 0 ? 0 : 1);
    }

    /** Looks for what is not there any more when what was read is written again: values that an enumeration does not have. */
    static void compare(String path, JsonNode wanted, JsonNode found) {
        if (wanted.isObject()) {
            wanted.fields().forEachRemaining(at -> compare(path + "." + at.getKey(), at.getValue(), found.path(at.getKey())));
        } else if (wanted.isArray()) {
            for (int i = 0; i < wanted.size(); i++) compare(path + "[" + i + "]", wanted.get(i), found.path(i));
        } else if (!wanted.asText().equals(found.asText())) {
            faults.add(path + " is not understood: " + wanted);
        }
    }

    /** Looks for what was read and not understood, in an object of the model and everything below it. */
    static void look(String path, Object value) throws Exception {
        if (value instanceof Collection<?> list) {
            for (Object item : list) look(path + "[]", item);
        }
        if (value == null || !value.getClass().getName().startsWith("io.strimzi.")) return;
        if (value instanceof Enum<?>) return;
        if (value instanceof UnknownPropertyPreserving known && known.getAdditionalProperties() != null) {
            known.getAdditionalProperties().keySet().forEach(name -> faults.add(path + " has no field " + name));
        }
        for (Method method : value.getClass().getMethods()) {
            boolean isGetter = method.getName().matches("get[A-Z].*") && method.getParameterCount() == 0;
            if (isGetter && !List.of("getClass", "getAdditionalProperties").contains(method.getName())) {
                String field = Character.toLowerCase(method.getName().charAt(3)) + method.getName().substring(4);
                look(path + "." + field, method.invoke(value));
            }
        }
    }
}
